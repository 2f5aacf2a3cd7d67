//! What clients, routers and operators of such servers rely on, and the tests that show it. Numbers are those of the list
//! that the tests were derived from; `tests/clients/run` shows what needs other people's programs (35).
//!
//! | | what | file | test |
//! |---|---|---|---|
//! | 1 | list of models | `http/tests/operators.rs` | `models_have_cards` |
//! | 2 | one model | `http/tests/operators.rs` | `models_have_cards` |
//! | 3 | order of a chat stream | `http/tests/chat.rs` | `a_stream_is_role_tokens_reason_and_done` |
//! | 4 | `include_usage` | `http/tests/chat.rs` | `usage_comes_in_one_chunk_without_choices_when_asked_for` |
//! | 5 | `continuous_usage_stats` | `http/tests/chat.rs` | `continuous_usage_is_on_every_chunk_and_never_goes_down` |
//! | 6 | streamed text is the complete text | `http/tests/chat.rs` | `streamed_and_complete_answers_are_the_same_text_wherever_they_are_cut` |
//! | 6 | streamed text is the complete text | `tests/serve/text.rs` | `a_stream_joins_to_the_complete_answer_wherever_characters_are_cut` |
//! | 7 | `completion_tokens` is what was sampled | `tests/serve/text.rs` | `a_stream_joins_to_the_complete_answer_wherever_characters_are_cut` |
//! | 8 | `cached_tokens`, also through a hand-off | `tests/serve/text.rs` | `cached_tokens_are_counted_alike_with_and_without_a_hand_off` |
//! | 9 | `max_tokens`, `max_completion_tokens` | `http/tests/chat.rs` | `limits_are_the_new_name_then_the_old_one_then_what_there_is_room_for` |
//! | 10 | `n` | `http/tests/chat.rs` | `several_answers_have_indexes_and_seeds_of_their_own` |
//! | 10 | `n` | `http/tests/native.rs` | `rooms_come_as_one_number_or_as_lists` |
//! | 11 | stop strings | `http/tests/chat.rs` | `a_stop_string_ends_the_answer_and_the_work` |
//! | 11 | stop strings | `http/tests/chat.rs` | `stop_strings_stay_where_they_are_included_and_wait_for_the_least_tokens` |
//! | 12 | log probabilities, echo | `http/tests/chat.rs` | `log_probabilities_have_one_entry_for_each_token` |
//! | 12 | log probabilities, echo | `http/tests/completions.rs` | `echo_with_log_probabilities_scores_the_prompt` |
//! | 12 | log probabilities, echo | `http/tests/completions.rs` | `echo_without_tokens_is_the_prompt_alone` |
//! | 13 | forms of a prompt | `http/tests/completions.rs` | `the_four_forms_of_a_prompt_are_one` |
//! | 14 | unknown fields, null | `http/tests/chat.rs` | `unknown_fields_are_ignored_and_null_is_absent` |
//! | 17 | bad input | `http/tests/bad.rs` | `bad_values_are_refused_with_the_field_and_the_reason` |
//! | 17 | bad input | `http/tests/bad.rs` | `broken_json_is_located` |
//! | 18 | keys | `http/tests/operators.rs` | `a_key_is_needed_where_there_is_one` |
//! | 19 | 429, 503, aborts | `http/tests/bad.rs` | `refusals_of_the_worker_have_their_statuses_streamed_or_not` |
//! | 19 | 429, 503, aborts | `http/tests/connection.rs` | `a_client_that_goes_away_in_a_stream_cancels_all_of_its_sequences` |
//! | 19 | 429, 503, aborts | `tests/serve/health.rs` | `a_full_queue_is_429` |
//! | 19 | 429, 503, aborts | `tests/serve/health.rs` | `a_worker_that_drains_is_alive_not_ready_and_takes_nothing` |
//! | 22 | `/generate` | `http/tests/native.rs` | `streams_are_cumulative_and_end_with_the_reason` |
//! | 22 | `/generate` | `http/tests/native.rs` | `incremental_streams_join_to_the_cumulative_one` |
//! | 22 | `/generate` | `http/tests/native.rs` | `an_answer_says_where_its_prompt_came_from` |
//! | 22 | `/generate` | `http/tests/native.rs` | `ids_and_text_are_two_ways_to_the_same_answer_and_lists_give_lists` |
//! | 23 | `/tokenize`, `/detokenize` | `http/tests/operators.rs` | `text_and_tokens_go_both_ways` |
//! | 24 | `/metrics` | `http/tests/operators.rs` | `metrics_are_the_workers_text_for_get_and_head` |
//! | 24 | `/metrics` | `tests/serve/health.rs` | `scrapers_can_read_the_metrics_of_workers_and_of_the_router` |
//! | 25 | health under load | `http/tests/operators.rs` | `health_and_readiness_follow_the_worker` |
//! | 25 | health under load | `tests/serve/health.rs` | `health_is_answered_many_times_while_one_long_prompt_is_computed` |
//! | 25 | health under load | `tests/serve/health.rs` | `a_generating_health_check_computes_a_token_in_each_mode` |
//! | 25 | health under load | `tests/serve/health.rs` | `a_worker_that_drains_is_alive_not_ready_and_takes_nothing` |
//! | 26 | `/abort_request`, attaching L3 while busy | `http/tests/operators.rs` | `requests_are_aborted_by_their_whole_name` |
//! | 26 | `/abort_request`, attaching L3 while busy | `tests/serve/abort.rs` | `an_aborted_request_gives_its_pages_back_and_the_others_go_on` |
//! | 26 | `/abort_request`, attaching L3 while busy | `tests/serve/attach.rs` | `an_attach_that_cannot_be_done_says_why_and_changes_nothing` |
//! | 27 | recorded requests | `http/tests/conformance.rs` | `requests_of_routers_and_proxies_are_served` |
//! | 27 | recorded requests | `router/tests/traffic.rs` | `recorded_requests_reach_workers_in_the_form_that_sglangs_routers_give_them` |
//! | 28 | halves in any order | `tests/serve/rooms.rs` | `whichever_half_comes_first_the_answer_is_the_same` |
//! | 29 | retries with other rooms | `http/tests/native.rs` | `a_retry_with_a_new_room_drops_the_old_one` |
//! | 29 | retries with other rooms | `tests/serve/rooms.rs` | `a_thousand_retries_of_one_name_leave_nothing_behind` |
//! | 30 | one half goes away | `tests/serve/rooms.rs` | `a_half_whose_client_goes_away_frees_both` |
//! | 31 | 2.2.2.2 | `http/tests/native.rs` | `the_fake_host_means_that_nothing_is_transferred` |
//! | 31 | 2.2.2.2 | `tests/serve/rooms.rs` | `the_fake_host_answers_locally_and_transfers_nothing` |
//! | 34 | HTTP/2, idle connections, large bodies | `http/tests/connection.rs` | `the_http2_preface_is_answered_on_the_same_port` |
//! | 34 | HTTP/2, idle connections, large bodies | `http/tests/connection.rs` | `a_connection_that_was_idle_for_ten_minutes_is_served` |
//! | 34 | HTTP/2, idle connections, large bodies | `http/tests/bad.rs` | `paths_methods_types_and_sizes_have_statuses_of_their_own` |
//! | 36 | the router changes nothing else | `router/tests/traffic.rs` | `both_legs_get_the_same_request_and_the_client_gets_the_decode_workers_answer` |
//! | 36 | the router changes nothing else | `router/tests/traffic.rs` | `the_prompts_logprobs_of_the_prefill_worker_come_before_the_decode_workers` |
//! | 36 | the router changes nothing else | `router/tests/stream.rs` | `events_reach_the_client_while_the_workers_are_still_at_work` |
//! | 36 | the router changes nothing else | `router/tests/stream.rs` | `a_stream_that_breaks_between_events_ends_with_an_error_event_and_done` |
//! | 36 | the router changes nothing else | `router/tests/faults.rs` | `too_many_requests_stays_that_with_the_workers_words` |
//! | 38 | readiness without a pair | `router/tests/admin.rs` | `a_router_without_workers_is_alive_and_not_ready` |
//! | 38 | readiness without a pair | `router/tests/admin.rs` | `readiness_names_the_role_that_is_missing` |
//! | 39 | workers of other versions | `router/tests/admin.rs` | `workers_of_other_versions_serve_and_a_warning_says_what_they_lack` |
//! | 40 | pairs that do not fit | `tests/serve/pairing.rs` | `a_pair_that_does_not_fit_is_refused_with_both_values` |

use std::path::Path;

#[test]
fn every_test_of_the_table_is_there() {
    let table = include_str!("acceptance.rs").lines().filter_map(|line| line.strip_prefix("//! | ")).skip(1);
    let net = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for row in table {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let (file, test) = (cells[2], cells[3]);
        let path = if file.starts_with("tests/") { net.join("..").join(file) } else { net.join("src").join(file) };
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(source.contains(&format!("fn {test}()")), "{file} has no test {test}");
        count += 1;
    }
    assert!(count > 40, "the table was not found");
}
