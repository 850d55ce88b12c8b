//! Words that leave nothing in a server: how statements begin, what stands in front of parentheses
//! without being called, and functions of PostgreSQL's own.

/// Whether statements that begin with this word leave nothing by that alone.
pub(super) fn begins(word: &[u8]) -> bool {
    lists(BEGINNINGS, word)
}

/// Whether a list of columns follows the name behind this word, in a statement with this first
/// word.
pub(super) fn introduces(word: &[u8], first: &[u8]) -> bool {
    match word {
        b"into" | b"table" | b"references" | b"exists" | b"copy" | b"as" | b"recursive"
        | b"view" | b"function" | b"procedure" => true,
        b"with" => first == b"with",
        b"on" => first == b"create",
        b"vacuum" | b"analyze" => first == word,
        _ => false,
    }
}

/// Whether this is a key word or a type when a parenthesis follows.
pub(super) fn is_known(word: &[u8]) -> bool {
    lists(KEY_WORDS, word)
}

/// Whether a function of PostgreSQL's own leaves nothing in its session.
pub(super) fn is_harmless(function: &[u8]) -> bool {
    [VALUES, AGGREGATES, SYSTEM].iter().any(|list| lists(list, function))
}

fn lists(list: &str, word: &[u8]) -> bool {
    let list = list.as_bytes();
    let is_whole = |at: usize| {
        let (before, after) = (at.checked_sub(1), at + word.len());
        before.is_none_or(|at| list[at] == b' ') && list.get(after).is_none_or(|b| *b == b' ')
    };
    let one = !word.is_empty() && !word.contains(&b' ');
    one && memchr::memmem::find_iter(list, word).any(is_whole)
}

/// First words.
const BEGINNINGS: &str = "\
    select insert update delete merge values table with show explain begin start commit end \
    rollback abort savepoint release copy vacuum analyze truncate reindex cluster comment grant \
    revoke alter create drop refresh checkpoint lock notify close fetch move reset discard \
    deallocate unlisten declare reassign import execute";

/// Key words and types.
const KEY_WORDS: &str = "\
    in values and or not any some all exists as over filter using on from join where by having \
    select distinct union except intersect limit offset then else when case between like ilike \
    is array row cast extract coalesce nullif greatest least overlay position substring trim \
    group grouping sets rollup cube lateral interval key unique check include range list hash \
    btree gin gist brin varchar char character varying numeric decimal bit float time timestamp \
    timestamptz default returning set conflict with explain vacuum analyze copy enum reindex to \
    for materialized window always identity index into table update delete insert ordinality \
    only";

/// Functions of values.
const VALUES: &str = "\
    now lower upper length char_length octet_length concat concat_ws format left right lpad rpad \
    ltrim rtrim btrim replace translate reverse repeat split_part strpos starts_with \
    regexp_replace regexp_match regexp_matches regexp_split_to_array regexp_split_to_table \
    substr initcap md5 sha256 sha512 encode decode quote_ident quote_literal quote_nullable chr \
    ascii to_char to_date to_timestamp to_number to_hex date_trunc date_part date_bin age \
    clock_timestamp statement_timestamp transaction_timestamp timezone make_date make_interval \
    make_timestamp make_timestamptz isfinite abs ceil ceiling floor round trunc sign sqrt power \
    exp ln log mod div random width_bucket gen_random_uuid generate_series generate_subscripts \
    unnest array_length array_append array_prepend array_cat array_position array_remove \
    array_replace array_to_string string_to_array cardinality to_json to_jsonb row_to_json \
    json_build_object jsonb_build_object json_build_array jsonb_build_array jsonb_set \
    jsonb_insert jsonb_extract_path json_extract_path jsonb_extract_path_text \
    json_extract_path_text jsonb_array_elements jsonb_array_elements_text json_array_elements \
    json_array_elements_text jsonb_each jsonb_each_text json_each jsonb_object_keys jsonb_typeof \
    jsonb_path_exists jsonb_path_query jsonb_strip_nulls jsonb_array_length json_array_length \
    jsonb_to_recordset json_to_recordset to_tsvector to_tsquery plainto_tsquery phraseto_tsquery \
    websearch_to_tsquery ts_rank ts_rank_cd ts_headline setweight hashtext host family masklen";

/// Functions of sets and windows.
const AGGREGATES: &str = "\
    count sum avg min max array_agg string_agg json_agg jsonb_agg json_object_agg \
    jsonb_object_agg bool_and bool_or every bit_and bit_or row_number rank dense_rank \
    percent_rank cume_dist ntile lag lead first_value last_value nth_value percentile_cont \
    percentile_disc mode stddev stddev_pop stddev_samp variance corr";

/// Functions that tell of the server, and those whose effect ends with the transaction.
const SYSTEM: &str = "\
    nextval setval inet_server_port inet_server_addr inet_client_addr inet_client_port version \
    current_database current_schema current_schemas current_setting pg_is_in_recovery \
    pg_backend_pid pg_sleep pg_typeof has_table_privilege has_schema_privilege obj_description \
    col_description format_type pg_get_expr pg_get_userbyid pg_get_constraintdef pg_get_indexdef \
    pg_get_viewdef pg_get_serial_sequence pg_table_is_visible pg_relation_size pg_table_size \
    pg_total_relation_size pg_database_size pg_size_pretty pg_encoding_to_char to_regclass \
    to_regtype txid_current pg_current_xact_id pg_current_wal_lsn pg_postmaster_start_time \
    pg_notify pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock \
    pg_try_advisory_xact_lock_shared pg_cancel_backend pg_terminate_backend";
