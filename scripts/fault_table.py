"""The fault table: what can happen to a run, what is promised, and the tests that do it."""

from typing import NamedTuple


class Row(NamedTuple):
    """Without tests it is the heading of the rows that follow."""

    fault: str
    promise: str = ""
    tests: tuple[str, ...] = ()


def row(fault: str, promise: str, *tests: str) -> Row:
    return Row(fault, promise, tuple(f"tests/{test}" for test in tests))


ROWS = (
    Row("Kills"),
    row(
        "SIGKILL before, within and after every call of a save",
        "older checkpoints whole, the newest verifies, the next save leaves nothing over",
        "faults/test_kills.py::test_killed_before_within_and_after_every_call_of_a_save",
        "faults/test_kills.py::test_it_is_noticed_when_a_save_is_careless",
    ),
    row(
        "SIGKILL at every system call of a save (strace)",
        "the same",
        "faults/test_kills.py::test_killed_at_every_system_call_of_a_save_and_their_order",
    ),
    row(
        "two kills in a row within one save",
        "the same",
        "faults/test_kills.py::test_killed_twice_in_a_row_within_one_save",
        "test_resume.py::test_killed_twice_and_resumed_is_bit_identical",
    ),
    row(
        "SIGKILL at random instants of a run",
        "resumed, it ends with the same bits; figures above",
        "faults/test_kills.py::test_a_sample_of_the_soak",
        "faults/test_kills.py::test_the_soak_notices",
        "test_resume.py::test_killed_and_resumed_is_bit_identical",
        "test_resume.py::test_the_comparison_notices_hidden_state",
        "test_saving.py::test_killed_during_a_save_the_older_checkpoint_is_the_run",
    ),
    row(
        "power cut",
        "write, fsync, rename, fsync of the folder, in this order; the log before the checkpoint; "
        "new folders too",
        "faults/test_kills.py::test_killed_at_every_system_call_of_a_save_and_their_order",
        "test_checkpoint.py::test_written_then_synced_then_renamed_then_folder_synced",
        "test_saving.py::test_the_log_is_on_the_disk_before_the_checkpoint_and_best_after",
        "faults/test_storage.py::test_new_folders_are_synced_where_they_stand",
        "faults/test_damage.py::test_a_torn_log_is_mended",
    ),
    Row("Storage"),
    row(
        "disk full",
        "exit 6 with the file's name at the next step, earlier checkpoints whole; with room "
        "--resume ends with the same bits",
        "faults/test_storage.py::test_a_full_disk_ends_the_run_and_with_room_it_goes_on",
        "faults/test_storage.py::test_a_disk_that_fails_at_a_write_ends_the_run",
        "test_saving.py::test_a_full_disk_ends_the_run_at_the_next_step",
        "test_saving.py::test_a_full_disk_at_the_last_step_is_no_success",
        "test_saving.py::test_another_error_does_not_hide_that_the_last_save_failed",
    ),
    row(
        "file too large (EFBIG)",
        "the same",
        "faults/test_storage.py::test_a_file_that_grows_too_large",
    ),
    row(
        "EIO on fsync: of the checkpoint, its folder, the log, best.json",
        "the same; never taken for storage that merely cannot sync",
        "faults/test_storage.py::test_a_disk_that_fails_at_fsync_ends_the_run",
        "faults/test_storage.py::test_it_is_noticed_when_an_error_of_the_disk_is_swallowed",
        "test_checkpoint.py::test_failing_storage_stops_and_leaves_the_earlier_ones",
    ),
    row(
        "read-only folder",
        "exit 6 before step 0, nothing changed",
        "faults/test_storage.py::test_a_read_only_folder_is_told_before_step_0",
    ),
    row(
        "storage without folder fsync or locks (network and VM mounts)",
        "named once, training goes on",
        "faults/test_storage.py::test_a_folder_that_cannot_be_synced_is_named_once",
        "faults/test_storage.py::test_storage_without_locks_is_named_once_and_training_goes_on",
        "test_checkpoint.py::test_a_folder_that_cannot_be_synced_is_named_once_and_training_goes_on",
    ),
    row(
        "the storage returns other bytes than were written",
        "nothing is pruned, exit 6",
        "test_checkpoint.py::test_prune_deletes_nothing_unless_the_new_one_verifies",
    ),
    Row("Checkpoints"),
    row(
        "cut at 20 places",
        "named, and the one before is taken",
        "faults/test_damage.py::test_cut_at_20_places",
        "test_checkpoint.py::test_every_truncation_is_noticed",
        "test_bad_input.py::test_resume_passes_over_a_damaged_checkpoint_and_names_it",
    ),
    row(
        "a byte flipped at 200 places",
        "the same, wherever it is: header, metadata, numbers",
        "faults/test_damage.py::test_a_byte_flipped_at_200_places",
        "faults/test_damage.py::test_it_is_noticed_when_a_header_is_believed_unverified",
        "faults/test_damage.py::test_it_is_noticed_when_the_checksum_is_not_compared",
        "test_checkpoint.py::test_every_flipped_byte_is_noticed",
    ),
    row(
        "zero length",
        "the same",
        "test_checkpoint.py::test_newest_passes_over_damaged_ones_and_names_them",
        "faults/test_damage.py::test_where_none_verifies_nothing_is_begun_anew",
    ),
    row(
        "a leftover temporary file",
        "never taken for a checkpoint, gone with the next save",
        "faults/test_damage.py::test_a_damaged_run_goes_on_to_the_same_bits",
        "test_checkpoint.py::test_other_files_in_the_folder_are_no_checkpoints",
        "test_checkpoint.py::test_what_a_crash_left_half_written_goes_with_the_next_save",
    ),
    row(
        "all are bad",
        "exit 4, all named; never restarted at step 0",
        "faults/test_damage.py::test_where_none_verifies_nothing_is_begun_anew",
        "test_bad_input.py::test_resume_where_no_checkpoint_verifies_stops",
    ),
    row(
        "a pickle payload in a file given to model.init",
        "refused, not run",
        "test_init.py::test_a_pickle_payload_is_refused_and_not_run",
    ),
    row(
        "a later format version",
        "exit 4: update; nothing is guessed",
        "faults/test_damage.py::test_a_checkpoint_of_a_later_version_is_not_guessed_at",
        "test_checkpoint.py::test_a_newer_format_is_refused",
    ),
    row(
        "the clock set back",
        "checkpoints are ordered by step, never by time",
        "faults/test_damage.py::test_a_damaged_run_goes_on_to_the_same_bits",
        "test_checkpoint.py::test_order_is_by_step_and_not_by_time",
    ),
    Row("Runs and their folders"),
    row(
        "two runs in one folder",
        "the second exits 2, whatever its flags",
        "faults/test_machine.py::test_two_runs_in_one_folder",
        "test_runs.py::test_a_second_process_is_refused_until_the_first_is_dead",
        "test_runs.py::test_a_run_in_use_is_neither_resumed_nor_renamed_nor_shadowed",
    ),
    row(
        "an orphaned child of a killed run, alive",
        "the lock is free at once",
        "faults/test_machine.py::test_an_orphan_of_a_killed_run_does_not_keep_its_folder",
        "test_runs.py::test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent",
    ),
    row(
        "config changed",
        "exit 2 with a diff; --allow-config-change KEY accepts",
        "test_bad_input.py::test_a_changed_setting_is_shown_refused_and_accepted_by_name",
        "test_bad_input.py::test_another_network_cannot_be_accepted_on_resume",
        "test_bad_input.py::test_a_shorter_schedule_is_refused_on_resume",
    ),
    row(
        "data set changed",
        "exit 3; the same images elsewhere are the same",
        "test_bad_input.py::test_other_images_on_resume",
        "test_bad_input.py::test_images_that_moved_are_the_same",
        "test_index_cache.py::test_a_photo_overwritten_during_a_run_is_told",
    ),
    row(
        "wrong class count",
        "exit 2 with both numbers",
        "test_bad_input.py::test_another_class_count_on_resume",
        "test_bad_input.py::test_found_before_anything_is_created",
    ),
    row(
        "an unfinished run of the same config",
        "never shadowed, never written over; --fresh renames",
        "test_runs.py::test_an_unfinished_run_of_the_config_is_never_shadowed",
        "test_runs.py::test_fresh_renames_and_deletes_nothing",
        "test_runs.py::test_a_start_that_failed_before_its_first_checkpoint_is_used_again",
    ),
    Row("Signals"),
    row(
        "SIGTERM, SIGINT in start-up",
        "it ends, and the folder is free; once the run is open, step 0 is saved",
        "faults/test_stops.py::test_a_stop_in_start_up_leaves_the_folder_free",
        "faults/test_stops.py::test_a_stop_while_the_run_is_opened",
    ),
    row(
        "SIGTERM, SIGINT in a step",
        "saved at the step's end, exit 143 or 130, resumes to the same bits",
        "faults/test_stops.py::test_a_stop_in_a_step_saves_and_resumes_to_the_bit",
        "test_resume.py::test_sigterm_saves_at_the_next_step_and_resumes_bit_identical",
    ),
    row(
        "SIGTERM in an evaluation",
        "the same; the evaluation is made on resume, and logged once",
        "test_interrupted_evaluation.py::test_an_evaluation_that_was_cut_short_is_made_on_resume",
        "test_interrupted_evaluation.py::"
        "test_an_evaluation_made_on_resume_is_in_a_checkpoint_at_once",
    ),
    row(
        "SIGTERM in a save",
        "that save and the last are whole",
        "test_saving.py::test_sigterm_during_a_save_still_saves_the_last_step",
    ),
    row(
        "SIGTERM to the whole process group",
        "the same as to the process: the loader works in threads, there are no worker processes",
        "faults/test_stops.py::test_a_stop_for_the_whole_process_group",
    ),
    row(
        "a second signal",
        "exits at once, the last checkpoint whole",
        "faults/test_stops.py::test_a_second_stop_ends_it_at_once",
        "test_saving.py::test_a_second_signal_does_not_wait_for_the_save",
    ),
    row(
        "SIGUSR1",
        "saves and goes on; in start-up it ends nothing",
        "faults/test_stops.py::test_usr1_saves_and_goes_on",
        "faults/test_stops.py::test_usr1_in_start_up_ends_nothing",
    ),
    row(
        "nobody reads its output any more",
        "the run goes on, and can be stopped and saved",
        "faults/test_stops.py::test_a_run_outlives_the_reader_of_its_lines",
        "faults/test_stops.py::test_a_run_without_a_reader_is_stopped_and_saved_all_the_same",
    ),
    Row("The machine"),
    row(
        "a worker dies, /dev/shm is full",
        "cannot happen: the loader has threads, no processes, and no shared memory; a thread's "
        "error ends the run, what was saved stays",
        "faults/test_machine.py::test_a_decoding_thread_that_fails_ends_the_run_with_its_error",
        "test_loader.py::test_an_exception_arrives_in_its_turn",
        "test_loader.py::test_threads_stop_when_the_consumer_leaves_early",
    ),
    row(
        "a read that hangs",
        "training waits; a second signal ends it, the last checkpoint whole",
        "faults/test_stops.py::test_a_hung_read_is_ended_by_the_second_stop",
    ),
    row(
        "few file descriptors",
        "shards are opened as they are needed; no photo is blamed for the machine",
        "faults/test_machine.py::test_more_shards_than_descriptors",
        "faults/test_machine.py::test_a_photo_is_not_blamed_for_the_machine",
        "faults/test_machine.py::test_the_limit_follows_the_systems",
    ),
    row(
        "a million images, many epochs",
        "memory within 2 MB over the last five",
        "test_index_cache.py::test_memory_stays_flat_over_epochs",
    ),
    Row("Numbers"),
    row(
        "NaN in one step",
        "the step changes no bit; exit 5, everything needed to repeat it written; or skipped",
        "test_numeric.py::test_a_bad_step_changes_not_one_bit",
        "test_numeric.py::test_the_comparison_notices_a_guard_that_is_gone",
        "test_numeric.py::test_a_run_stops_and_keeps_the_state_before_the_bad_step",
        "test_numeric.py::test_what_repeats_the_bad_step_is_written_down",
        "test_numeric.py::test_a_skipped_step_is_as_if_it_had_not_been",
        "test_numeric.py::test_one_more_in_a_row_than_allowed_stops",
        "test_numeric.py::test_resumed_after_a_skipped_step_is_bit_identical",
    ),
    row(
        "poisoned BatchNorm buffers, weights or averages at a save",
        "not saved, exit 5, earlier checkpoints whole",
        "test_numeric.py::test_a_poisoned_state_is_not_saved",
        "test_numeric.py::test_a_weight_that_overflowed_before_the_bad_step_is_not_saved_either",
    ),
    Row("Images"),
    row(
        "truncated, empty, non-image with an image's name, dangling link",
        "exit 3 with the path, what was learnt is saved; or left out without substitution, listed, "
        "capped",
        "faults/test_images.py::test_bad_files_stop_a_run_with_their_path_or_are_left_out",
        "test_decode.py::test_what_is_no_image_is_named",
        "test_decode.py::test_a_truncated_jpeg_fails_for_every_box",
        "test_quarantine.py::test_by_default_it_stops_with_the_path_and_goes_on_with_quarantine",
        "test_quarantine.py::test_too_many_stop_the_run_and_the_state_is_saved",
        "test_data_verify.py::test_every_bad_file_is_listed_with_its_reason",
    ),
    row(
        "CMYK, PNG named JPEG, palette, alpha, EXIF-rotated, animated, 16-bit",
        "decoded as by Pillow",
        "faults/test_images.py::test_a_run_on_odd_files",
        "test_decode.py::test_pixels_are_pillows",
        "test_orientation.py::test_whole_photos_and_boxes_are_turned_as_by_pillow",
    ),
    row(
        "a decompression bomb",
        "refused from its header, under 20 MB of memory",
        "faults/test_images.py::test_a_bomb_takes_no_memory",
        "test_decode.py::test_bombs_are_refused_from_the_header",
    ),
    row(
        "damaged files",
        "no crash, no hang; decoded, or reported with the path; figures below",
        "faults/test_images.py::test_a_sample_of_damaged_files",
        "faults/test_images.py::test_the_fuzzer_notices",
        "test_decode.py::test_random_damage_raises_one_kind_of_error",
    ),
    row(
        "empty class",
        "exit 3 with its name",
        "test_index.py::test_empty_class_folders_are_named",
    ),
    row(
        "symlink loop, Unicode and non-UTF-8 names",
        "read like any other",
        "faults/test_images.py::test_a_run_on_odd_files",
        "test_index.py::test_links_to_folders_are_followed_and_loops_end",
        "test_index.py::test_names_outside_utf8",
    ),
    row(
        "a tar shard with `../` in it",
        "refused with the member's name; shards are read in place, never extracted",
        "test_shards.py::test_paths_that_leave_the_archive_are_refused",
        "test_shards.py::test_linked_photos_are_refused_and_other_links_are_no_matter",
        "test_shards.py::test_shards_cut_short_are_refused_wherever_the_cut_is",
    ),
    Row("Config files"),
    row(
        "`!!python`, duplicate key, tab, wrong type, and 50 more",
        "exit 2, each with file, line, key and the way out; all at once",
        "test_config.py::test_mistake_in_a_file",
        "test_config.py::test_mistake_in_an_override",
        "test_config.py::test_all_mistakes_at_once_in_the_order_of_the_lines",
        "test_config.py::test_not_utf_8",
    ),
)
