//! The integration tests, on one real ClickHouse per run.
//!
//! Each test is an async function with a database of its own. With `TALLYHOUSE_TEST_CLICKHOUSE=http://…` that server
//! is used instead of one started here.
//!
//! With `TALLYHOUSE_TEST_PROGRAM=/path/to/tallyhouse` the tests start that program instead of the one built with
//! them. This shows that a test of a fixed fault fails on an older build. The build needs fail points: a debug build
//! has them.

#![allow(
    clippy::unwrap_used,
    reason = "a test's panic is its report, and clippy does not see tests without the harness"
)]

mod admin;
mod audit;
mod belief;
mod chaos;
mod cli;
mod cloud;
mod cluster;
mod erase;
mod exact;
mod gaps;
mod grafana;
mod group;
mod hostile;
mod lifecycle;
mod mapping;
mod memory;
mod operate;
mod operator;
mod peers;
mod protocol;
mod recovery;
mod rejects;
mod report;
mod retention;
mod schema;
mod secrets;
mod security;
mod service;
mod signals;
mod stops;
mod versions;

use devstack::Stack;
use libtest_mimic::{Arguments, Trial};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Environment variable with a program to test instead of the one built with the tests.
const PROGRAM_VARIABLE: &str = "TALLYHOUSE_TEST_PROGRAM";

/// Tests that need replicas, which not every machine can run.
const ON_REPLICAS: [&str; 8] = [
    "cluster::replicas_get_the_same_tables",
    "cluster::a_member_counts_on_replicas",
    "cluster::a_member_changes_to_the_next_server_and_back",
    "cluster::a_replicated_database_is_exact",
    "cluster::members_on_different_replicas_are_exact",
    "cluster::a_replica_that_lacks_the_last_migration_is_waited_for",
    "cluster::a_lost_disk_loses_nothing_that_was_committed",
    "cluster::a_repair_on_replicas_is_exact",
];

/// Seconds of each test that passed, in the order in which they ended.
static TIMES: Mutex<Vec<(Duration, &str)>> = Mutex::new(Vec::new());

/// Prints the slowest tests, at which a shorter suite has to begin.
fn print_slowest() {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort_unstable_by(|a, b| b.cmp(a));
    for (took, name) in times.iter().take(20).filter(|(took, _)| took.as_secs() > 0) {
        println!("{:>7.1} s  {name}", took.as_secs_f64());
    }
}

/// Returns the program under test.
fn program() -> PathBuf {
    let given = std::env::var_os(PROGRAM_VARIABLE).filter(|path| !path.is_empty());
    given.map_or_else(|| env!("CARGO_BIN_EXE_tallyhouse").into(), PathBuf::from)
}

/// Makes a test of an `async fn(url, database)`; the database does not exist yet.
macro_rules! trials {
    ($url:expr; $($module:ident::$test:ident),* $(,)?) => {
        vec![$({
            let url: String = $url.clone();
            Trial::test(concat!(stringify!($module), "::", stringify!($test)), move || {
                let database = format!("{}_{:x}", stringify!($test), std::process::id());
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                let started = Instant::now();
                runtime.block_on($module::$test(&url, &database));
                let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
                times.push((started.elapsed(), concat!(stringify!($module), "::", stringify!($test))));
                Ok(())
            })
        }),*]
    };
}

fn main() -> ExitCode {
    devstack::init();
    let mut arguments = Arguments::from_args();
    // Half of a test's time is spent on waiting for servers: for sessions to expire, for groups to settle.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() * 3 / 2);
    arguments.test_threads.get_or_insert(threads);
    let clickhouse = match Stack::shared().clickhouse() {
        Ok(clickhouse) => clickhouse,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let url = clickhouse.url().to_owned();
    let trials = trials![url;
        // The longest ones come first, so that none of them is left at the end.
        chaos::every_kind_of_fault_once,
        protocol::a_crash_after_any_step_loses_and_doubles_nothing,
        protocol::a_replay_is_exact_when_no_token_is_remembered,
        stops::lost_counters_of_a_month_stop,
        cluster::two_shards_are_read_as_one,
        peers::a_steady_rate_is_counted_alike,
        service::what_is_produced_is_counted,
        service::sigterm_flushes_what_was_consumed,
        service::a_restart_in_the_middle_is_exact,
        service::kill9_at_every_step_is_exact,
        service::members_come_and_go,
        service::clickhouse_away_for_a_while,
        service::what_is_missing_at_the_start_is_named,
        service::the_memory_limit_pauses_consumption,
        service::the_python_producers_bytes_are_read,
        service::the_edges_of_a_day_are_that_days,
        service::a_zombie_that_wakes_up_doubles_nothing,
        // Tests on the replicas wait for one another, so others stand between them.
        cluster::replicas_get_the_same_tables,
        lifecycle::campaigns_are_counted_beside_their_events,
        recovery::a_lost_committed_offset_is_found_in_the_marks,
        recovery::a_lost_intent_is_completed_from_the_marks,
        recovery::a_member_ended_in_a_replay_leaves_it_to_the_next,
        recovery::a_recreated_topic_is_another_source,
        recovery::a_topic_recreated_under_a_running_member,
        exact::a_replay_beside_an_out_of_range_error_loses_nothing,
        exact::a_replay_of_half_the_memory_ends,
        exact::replays_of_a_larger_member_end,
        exact::a_batch_that_does_not_fit_is_announced_smaller,
        exact::a_batch_that_is_refused_for_its_size_is_announced_smaller,
        exact::a_half_applied_batch_that_does_not_fit_stops,
        exact::one_partition_that_waits_stops_no_other,
        exact::a_refused_insert_is_tried_with_growing_pauses,
        cluster::a_member_counts_on_replicas,
        memory::many_cores_make_no_more_arenas,
        memory::the_process_stays_within_the_limit_and_a_reserve,
        stops::the_pages_statements_run,
        stops::a_retention_gap_is_left_behind,
        stops::an_announced_batch_that_is_gone_stops,
        stops::an_applied_batch_that_is_gone_goes_on,
        stops::an_offset_ahead_of_the_log_is_deleted,
        stops::a_restored_backup_stops,
        stops::offsets_of_another_cluster_stop,
        stops::brokers_that_begin_to_tell_topic_ids_change_nothing,
        stops::marks_ahead_of_the_log_stop,
        stops::a_log_cut_before_an_announced_end_stops,
        stops::metadata_that_cannot_be_read_stops,
        stops::a_topic_recreated_under_an_open_batch_stops,
        stops::a_row_deleted_by_hand_is_a_conflict,
        stops::a_batch_rebuilt_with_other_counts_stops,
        cluster::a_member_changes_to_the_next_server_and_back,
        group::a_zombie_before_the_lease_check,
        group::a_zombie_after_the_lease_check,
        group::a_static_member_comes_back_without_a_rebalance,
        cluster::a_replicated_database_is_exact,
        group::a_fenced_static_member_ends,
        group::a_second_static_member_ends_in_the_consumer_protocol,
        group::the_consumer_protocol_is_exact,
        group::a_zombie_in_the_consumer_protocol,
        group::added_partitions_are_consumed_from_their_beginning,
        group::a_member_left_behind_ends,
        group::a_member_left_behind_ends_though_the_group_would_wait_for_ten_minutes,
        group::another_strategy_in_the_group_is_named,
        grafana::alerts_fire_and_are_silent,
        grafana::every_panel_and_rule_has_an_answer,
        hostile::every_kind_of_bad_input_is_kept_with_its_reason,
        hostile::large_records_and_bombs_of_every_codec,
        hostile::a_batch_that_cannot_be_unpacked_stops_no_other_partition,
        hostile::a_thousand_days_in_any_order,
        gaps::aborted_transactions_never_happened,
        gaps::an_open_transaction_is_seen,
        gaps::a_replay_ends_where_only_control_records_follow,
        audit::an_ordinary_run_is_clean_at_any_moment,
        audit::what_is_changed_by_hand_is_named_exactly,
        audit::a_lost_committed_offset_is_named,
        audit::gaps_of_transactions_are_no_losses,
        audit::a_kill_leaves_an_open_intent_that_is_told,
        audit::repair_counts_a_month_again,
        audit::repair_refuses_what_would_lose_counts,
        audit::repair_beside_a_member_is_exact,
        audit::a_fence_waits_for_inserts_under_way_and_refuses_later_ones,
        audit::repair_counts_what_is_inserted_meanwhile,
        audit::a_repair_that_was_killed_is_taken_over,
        cluster::members_on_different_replicas_are_exact,
        cluster::a_replica_that_lacks_the_last_migration_is_waited_for,
        belief::an_answer_of_somebody_else_is_no_acknowledgement,
        belief::a_proxy_that_changes_requests_ends_the_start,
        belief::a_profile_or_policy_that_falsifies_ends_the_start,
        belief::rows_that_are_never_shown_stop_their_partition,
        belief::a_view_of_ones_own_gets_each_row_once,
        belief::a_view_that_fails_within_an_insert_is_named,
        belief::a_row_policy_that_comes_later_stops_the_partition,
        belief::two_servers_behind_one_address_end_the_member,
        belief::a_server_that_is_renamed_is_the_same,
        versions::every_command_works_on_older_lines,
        cloud::shared_tables_are_exact,
        cluster::a_repair_on_replicas_is_exact,
        erase::a_person_is_erased_and_counts_stay,
        erase::only_the_address_itself_is_found,
        erase::an_erasure_that_was_killed_is_completed,
        erase::a_batch_blanked_half_applied_is_completed,
        retention::expired_days_are_no_violations,
        retention::events_older_than_the_ttl_are_counted,
        mapping::sendgrids_events_are_counted_by_the_preset,
        mapping::a_mapping_that_cannot_work_ends_run,
        report::the_report_is_the_known_set,
        report::a_campaign_in_depth_is_a_recount_of_its_rows,
        report::a_browser_shows_the_figures_of_the_json,
        report::days_of_any_zone_are_a_recount,
        report::recipients_are_a_recount,
        report::wrong_recipients_are_removed_where_all_rows_are_kept,
        report::the_views_count_as_the_report_does,
        report::a_report_that_cannot_be_made_says_why,
        rejects::what_is_mended_counts_once,
        rejects::own_bytes_are_replayed_after_a_changed_bound,
        rejects::a_replay_killed_anywhere_is_exact,
        rejects::random_interruptions_are_exact,
        rejects::of_two_replays_the_later_one_goes_on,
        rejects::a_ledger_that_forgets_is_refused,
        rejects::every_reject_is_in_the_dead_letter_topic,
        rejects::a_dead_letter_that_is_not_taken_holds_the_partition,
        cluster::a_lost_disk_loses_nothing_that_was_committed,
        admin::clients_that_mean_harm_hurt_nobody,
        security::tls_with_an_own_authority_is_exact,
        security::client_certificates_and_a_password_are_exact,
        security::tls_that_cannot_be_trusted_ends_the_start,
        security::a_wrong_password_ends_the_start,
        security::a_changed_password_is_taken_up,
        security::rights_that_miss_are_named_with_their_command,
        security::rejects_come_back_with_the_rights_that_are_named,
        security::the_least_clickhouse_rights_are_enough,
        security::the_threat_model_names_tests_that_exist,
        secrets::no_secret_is_ever_shown,
        operate::a_good_stack_is_all_ok,
        operate::a_check_names_the_server_that_is_away,
        operate::a_check_names_what_answers_in_the_place_of_kafka,
        operate::a_check_says_how_to_mend,
        operate::a_status_tells_who_counts,
        operate::a_status_sees_records_counted,
        operate::a_status_names_the_server_that_is_away,
        operate::a_watch_follows_until_ctrl_c,
        operate::a_status_tells_what_stops,
        operate::looking_leaves_no_trace,
        operate::pages_need_no_configuration,
        signals::a_hangup_and_a_doubled_signal_end_in_order,
        signals::a_second_signal_names_what_is_left_open,
        signals::a_refused_insert_is_not_waited_for,
        signals::a_repair_whose_output_goes_away_leaves_no_fence,
        signals::a_watch_ends_when_the_terminal_is_closed,
        protocol::progress_is_what_the_rows_say,
        protocol::a_question_for_many_sources_answers_for_each,
        protocol::a_batch_is_stored_as_it_was_consumed,
        protocol::an_insert_whose_lease_expires_is_broken_off,
        cli::migrate_makes_the_tables_once,
        cli::mistakes_get_one_clear_message,
        cli::explain_hides_secrets,
        schema::migrate_is_idempotent,
        schema::types_are_added_to_tables_with_rows,
        schema::migrate_completes_what_was_interrupted,
        schema::migrators_at_once_are_harmless,
        schema::foreign_migrations_are_refused,
        schema::check_names_what_is_missing,
        schema::check_names_what_differs,
        schema::merges_of_daily_sum_totals_and_keep_the_last_offset,
        schema::a_repeated_token_is_dropped,
        schema::failures_are_told_apart,
    ];
    // Where the pinned library can be made a replica, none is ignored.
    let has_replicas = devstack::replicas::unavailable().is_none() || devstack::Replicas::external().is_some();
    let without = |trial: Trial| match ON_REPLICAS.contains(&trial.name()) {
        true => trial.with_ignored_flag(!has_replicas),
        false => trial,
    };
    let trials = trials.into_iter().map(without).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_slowest();
    if conclusion.has_failed()
        && let Ok(server) = clickhouse.server()
    {
        eprintln!("the end of ClickHouse's log:\n{}", server.log_tail());
    }
    conclusion.exit_code()
}
