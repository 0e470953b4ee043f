//! The conformance suite: what every backend must do, one named test for each promise.
//!
//! The promises are the same on every backend, so the tests are too. The author of a backend says how to open a store
//! in a fresh namespace, and [`conformance_tests!`](crate::conformance_tests) makes one test of each case:
//!
//! ```
//! // tests/conformance.rs; tokio and this crate with its feature `conformance` are development dependencies.
//! # #[cfg(feature = "memory")]
//! mod memory {
//!     use kvactor::conformance::Fixture;
//!
//!     async fn open(namespace: String) -> Option<Fixture> {
//!         let url = format!("memory://conformance/{namespace}");
//!         Some(Fixture::connect(&url).await.expect("a store in memory always opens"))
//!     }
//!
//!     kvactor::conformance_tests!(open);
//! }
//! # fn main() {}
//! ```
//!
//! `cargo test --test conformance memory::` then runs `memory::atomic_put_creates_an_absent_key` and all the others.
//! `open` is any `async` function or closure of that shape; where it returns `None`, because there is no server on this
//! machine, the case is skipped and says so on the standard error output.
//!
//! What a case needs beyond one store it asks of its [`Fixture`]: a second store on the same namespace, which plays the
//! part of another process, and one on a neighbouring namespace. A backend that only one store can open at a time says
//! so with [`Fixture::exclusive`]; what needs two stores is then left out.
//!
//! The cases are public functions, to be run alone with [`run`]. They state their promise in the first line of their
//! documentation. They never wait for time to pass, except where time is the promise: those with a TTL take a few
//! seconds.
//!
//! # Settings
//! `KVACTOR_CONFORMANCE_SEED`, a number, changes the random sequences of the model test, which are otherwise the same
//! in every run; `KVACTOR_CONFORMANCE_SEQUENCES` says how many of them there are.

// A test suite fails by panicking: that is its job.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod atomic;
mod close;
mod concurrency;
mod election;
mod fixture;
mod keys;
mod limits;
mod list;
mod lock;
mod model;
mod read;
mod registration;
mod support;
mod tree;
mod ttl;
mod txn;
mod watch;
mod write;

pub use fixture::{Failure, Fixture, Outcome, run};

/// Makes one test of each conformance case: see the module [`conformance`](crate::conformance) for an example.
///
/// The argument is an expression for an `async` function or closure from the name of a fresh namespace to
/// `Option<`[`Fixture`](crate::conformance::Fixture)`>`. The tests are named after the cases; put the macro into a
/// module named after the backend.
#[macro_export]
macro_rules! conformance_tests {
    ($open:expr) => {
        $crate::for_each_conformance_case!($crate::conformance_test_of_each, $open);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_test_of_each {
    ([$open:expr] $($group:ident { $($case:ident)+ })+) => {
        $($(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::run(stringify!($case), $open, $crate::conformance::$case).await;
            }
        )+)+
    };
}

/// The one list of the cases, by file. A case that isn't in it is dead code, which the compiler reports.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_conformance_case {
    ($callback:path $(, $argument:expr)?) => {
        $callback! {
            [$($argument)?]
            keys {
                a_key_has_one_normal_form
                refused_empty_key
                refused_dot_segments
                refused_control_characters
                refused_code_points
                refused_overlong_key
                odd_keys_survive_the_trip
                odd_names_of_directories_survive_the_trip
                composed_and_decomposed_characters_are_two_keys
                case_matters
                longest_key_in_one_segment
                longest_key_in_many_segments
                longest_key_in_wide_characters
                zookeeper_is_an_ordinary_name_in_a_namespace
                namespaces_are_apart
                errors_name_the_key_without_the_namespace
                a_key_and_then_a_directory_of_its_name
                a_directory_and_then_a_key_of_its_name
                deleting_a_key_leaves_what_is_beneath
                deleting_what_is_beneath_leaves_the_key
                a_key_deleted_above_others_can_be_made_again
                parents_are_not_keys
                parents_left_behind_are_not_keys
            }
            read {
                get_returns_what_was_put
                get_of_a_missing_key
                get_of_a_deleted_key
                get_sees_the_writes_of_another_store_at_once
                get_stale_sees_a_write_in_the_end
                exists_tells_keys_from_absence
                exists_stale_sees_a_write_in_the_end
                an_empty_value_is_no_absence
                an_empty_value_beside_keys_beneath
                every_byte_survives_in_a_value
            }
            write {
                put_overwrites
                put_returns_the_version_that_get_shows
                put_with_default_options_is_put
                put_of_the_same_value_keeps_a_true_version
                versions_grow_with_every_change
                versions_grow_over_delete_and_recreate
                versions_name_their_backend
                versions_survive_serialisation
                delete_removes_the_key
                delete_of_a_missing_key
                delete_twice
            }
            limits {
                largest_value_by_put
                largest_value_by_atomic_put
                largest_values_in_a_list
                too_large_a_value_is_refused_by_put
                too_large_a_value_is_refused_by_atomic_put
                too_large_a_value_is_refused_by_txn
            }
            list {
                list_is_recursive
                list_shows_what_get_shows
                list_holds_what_is_strictly_beneath
                list_is_sorted_by_bytes
                list_takes_any_form_of_the_directory
                list_of_a_missing_directory
                list_of_a_key_without_keys_beneath
                list_of_the_root
                list_of_an_empty_root
                list_after_the_last_delete
                list_children_leaves_out_deeper_keys
                list_children_of_a_directory_with_only_deeper_keys
                list_keys_is_list_without_values
                list_in_pages_is_the_whole
                list_children_in_pages_is_the_whole
                list_page_at_the_exact_limit_is_the_last
                list_continues_behind_a_deleted_key
                list_continues_behind_any_key
                list_shows_keys_written_behind_a_page
                list_stale_sees_a_write_in_the_end
                list_with_a_limit_of_zero
                list_behind_a_key_of_another_directory
                list_of_a_thousand_keys
            }
            tree {
                delete_tree_counts_what_it_removes
                delete_tree_removes_what_is_strictly_beneath
                delete_tree_of_a_missing_directory
                delete_tree_of_a_key_without_keys_beneath
                delete_tree_twice
                delete_tree_of_odd_names
                delete_tree_of_a_deep_and_wide_tree
                delete_tree_refuses_the_root
                delete_tree_of_the_root_when_allowed
                delete_tree_of_an_empty_root
                delete_tree_of_the_root_stays_in_the_namespace
                a_deleted_tree_can_be_made_again
            }
            atomic {
                atomic_put_creates_an_absent_key
                atomic_put_absent_on_an_existing_key
                atomic_put_absent_on_a_parent
                atomic_put_absent_on_a_deleted_key
                atomic_put_replaces_the_expected_version
                atomic_put_returns_the_pair_as_written
                atomic_put_on_another_version
                atomic_put_on_a_missing_key
                atomic_put_on_a_parent
                atomic_put_chains
                atomic_put_of_an_old_incarnation
                atomic_put_with_the_version_of_another_key
                atomic_put_with_the_version_of_another_backend
                atomic_put_with_versions_from_everywhere
                atomic_put_with_a_serialised_version
                atomic_delete_of_the_expected_version
                atomic_delete_of_another_version
                atomic_delete_of_a_missing_key
                atomic_delete_of_an_old_incarnation
                atomic_delete_with_the_version_of_another_key
                atomic_delete_with_the_version_of_another_backend
                atomic_delete_leaves_what_is_beneath
            }
            txn {
                txn_applies_everything
                txn_of_nothing
                txn_of_checks_alone
                txn_with_a_failed_check_changes_nothing
                txn_names_the_first_failed_check
                txn_checks_existence
                txn_checks_absence
                txn_checks_versions
                txn_checks_no_old_incarnation
                txn_checks_refuse_versions_of_another_backend
                txn_checks_take_parents_for_absent
                txn_checks_and_changes_one_key
                txn_deletes_what_is_there_or_not
                txn_results_are_in_order
                txn_versions_are_true
                txn_of_64_entries
                txn_of_65_entries
                txn_changing_a_key_twice
                txn_in_new_directories
                txn_with_keys_above_and_beneath_each_other
                txn_on_keys_with_others_beneath
                txn_writes_empty_values
            }
            ttl {
                ttl_key_goes_in_time
                ttl_of_fractions_of_seconds
                ttl_key_is_a_key_like_others
                ttl_bound_is_returned
                ttl_bounds_are_kept
                ttl_out_of_bounds_is_refused
                ttl_of_many_keys
                ttl_starts_again_with_a_later_put
                ttl_on_a_permanent_key
                ttl_ends_with_a_later_write
                ttl_survives_a_failed_write
                ttl_ends_with_a_delete
                ttl_key_that_went_is_absent
                ttl_key_above_others
                ttl_key_and_a_put_beneath
                keep_alive_outlasts_the_ttl
                keep_alive_ends_with_the_store
                keep_alive_ends_with_a_later_put
                keep_alive_ends_with_a_later_ttl
                keep_alive_ends_with_a_delete
                keep_alive_without_a_ttl
            }
            lock {
                a_lock_has_one_holder
                tokens_of_a_lock_grow
                a_held_lock_is_a_key_with_its_holders_value
                a_holder_publishes_another_value
                try_lock_does_not_wait
                try_lock_does_not_wait_with_others
                waiting_for_a_lock_ends_in_time
                a_task_does_not_wait_for_itself
                waiters_of_a_store_are_served_in_order
                who_gives_up_waiting_leaves_nothing
                a_dropped_guard_gives_the_lock_back
                guarded_writes_are_made_while_the_lock_is_held
                the_largest_guarded_transaction
                an_ordinary_key_is_no_lock
                a_lock_beside_keys_beneath_it
                watch_tells_who_holds_a_lock
                a_lock_tells_of_its_end
                closing_gives_locks_back
                refused_locks
                counting_under_a_lock
            }
            election {
                one_candidate_leads
                observers_see_who_leads
                dropping_a_leadership_resigns
                a_demoted_candidate_stands_again
            }
            registration {
                a_registration_lasts_until_it_is_ended
                closing_takes_registrations_away
                a_registration_comes_back
                a_registration_yields_to_another_writer
                refused_registrations
            }
            watch {
                watch_opens_with_the_state
                watch_tells_of_writes_and_deletions
                watch_tells_of_every_kind_of_change
                watch_tells_of_the_end_of_a_ttl
                watch_sees_only_its_key
                watch_of_odd_keys
                watch_tree_opens_with_a_snapshot
                watch_tree_tells_of_what_is_strictly_beneath
                watch_tree_tells_of_a_deleted_tree
                watch_of_a_key_beside_that_of_its_directory
                watch_is_shared_by_its_subscribers
                watch_ends_with_the_store
                watch_refuses_invalid_keys
                watch_tree_as_lists
                watch_tells_every_revision
                watch_converges_amid_writers
            }
            close {
                close_refuses_every_call
                close_closes_every_clone
                close_leaves_other_stores_alone
                close_keeps_the_keys
                close_answers_the_calls_on_their_way
            }
            concurrency {
                sixty_four_callers_count_together
                of_racing_creates_one_wins
                of_two_racing_deletes_one_succeeds
                of_many_racing_deletes_one_succeeds
                of_racing_atomic_deletes_one_succeeds
                of_racing_txns_one_wins
                racing_txns_keep_the_sum
                each_of_many_txns_has_its_own_outcome
                txns_above_and_beneath_each_other
                of_two_txns_in_each_others_way_one_wins
                racing_puts_have_versions_of_their_own
                each_of_many_calls_has_its_own_outcome
                racing_puts_into_a_new_directory
                racing_puts_and_deletes_in_one_directory
                delete_tree_against_creates
                lists_amid_writes_are_sound
                racing_puts_with_a_ttl_last_their_time
                racing_ends_of_a_ttl_spare_a_later_one
            }
            model {
                random_sequences_follow_the_model
            }
        }
    };
}

/// Makes the cases of the list public, and only them.
macro_rules! publish {
    ([] $($group:ident { $($case:ident)+ })+) => {
        $(pub use $group::{$($case),+};)+
    };
}
for_each_conformance_case!(publish);
