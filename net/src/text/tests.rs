//! Detokeniser and stop strings against naive models; templates and special tokens against what transformers does.

use std::sync::{Arc, LazyLock};

use minijinja::Value;
use pd_core::id::Token;
use proptest::prelude::*;
use serde_json::json;

use super::strftime::strftime;
use super::{Chat, Detokenizer, Ending, Files, Passed, StopStrings, TemplateError, Text, TextError};

fn tiny() -> Files {
    Files {
        tokenizer: include_bytes!("../../tests/data/tiny/tokenizer.json").to_vec(),
        config: Some(include_bytes!("../../tests/data/tiny/tokenizer_config.json").to_vec()),
        ..Files::default()
    }
}

fn byte_level() -> Arc<Text> {
    static TEXT: LazyLock<Arc<Text>> = LazyLock::new(|| Arc::new(Text::from_files(&tiny()).unwrap()));
    Arc::clone(&TEXT)
}

fn fallback() -> Arc<Text> {
    static TEXT: LazyLock<Arc<Text>> = LazyLock::new(|| Arc::new(Text::from_files(&sentence()).unwrap()));
    Arc::clone(&TEXT)
}

/// A tokenizer of the kind of Llama 2: words with a mark for the space, and bytes for what is in no word.
fn sentence() -> Files {
    let mut vocabulary = serde_json::Map::new();
    let words = ["<unk>", "<s>", "</s>"].into_iter().map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    for name in
        words.chain(bytes).chain(["▁", "▁hello", "▁world", "h", "e", "l", "o", "w", "r", "d"].map(str::to_owned))
    {
        let id = vocabulary.len();
        vocabulary.insert(name, id.into());
    }
    let special = |id: u32, content: &str| json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "ignore_merges": true },
    });
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
    Files { tokenizer: tokenizer.to_string().into(), config: Some(config.to_string().into()), ..Files::default() }
}

/// All texts after each token.
fn growing(text: &Arc<Text>, tokens: &[Token]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(Arc::clone(text), true);
    let mut out = String::new();
    let mut seen = Vec::new();
    for &token in tokens {
        detokenizer.push(token, &mut out);
        seen.push(out.clone());
    }
    detokenizer.finish(&mut out);
    seen.push(out);
    seen
}

proptest! {
    /// The model: the lossy decode of all bytes so far, without the one mark that a cut character leaves at the end.
    #[test]
    fn any_tokens_decode_as_their_bytes_do_and_at_most_one_character_is_held_back(ids in prop::collection::vec(0_u32..382, 0..60)) {
        let text = byte_level();
        let tokens: Vec<Token> = ids.iter().copied().map(Token).collect();
        let mut bytes = Vec::new();
        let seen = growing(&text, &tokens);
        for (at, token) in tokens.iter().enumerate() {
            if token.0 < 377 {
                bytes.extend_from_slice(text.bytes_of(*token));
            }
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let is_cut = std::str::from_utf8(&bytes).is_err_and(|error| error.valid_up_to() < bytes.len());
            prop_assert!(seen[at] == whole || (is_cut && format!("{}\u{fffd}", seen[at]) == whole), "{:?} {:?}", seen[at], whole);
        }
        prop_assert_eq!(seen.last().unwrap(), &String::from_utf8_lossy(&bytes));
        let naive = text.tokenizer.decode(&ids, true).unwrap();
        prop_assert_eq!(seen.last().unwrap(), &naive);
    }

    #[test]
    fn text_that_was_encoded_comes_back_without_a_broken_character(given in "[a-z é你🙂👨‍👩‍👧ß\n]{0,40}") {
        let text = byte_level();
        let tokens = text.encode(&given, false).unwrap();
        let seen = growing(&text, &tokens);
        prop_assert!(seen.iter().all(|seen| given.starts_with(seen.as_str())));
        prop_assert_eq!(seen.last().unwrap(), &given);
    }

    #[test]
    fn words_with_byte_fallback_come_back_too(given in "(hello|world|é|你|🙂| |w|d){0,12}") {
        let text = fallback();
        let tokens = text.encode(&given, false).unwrap();
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        let seen = growing(&text, &tokens);
        prop_assert!(seen.iter().all(|seen| given.starts_with(seen.as_str())), "{:?}", seen);
        prop_assert_eq!(seen.last().unwrap(), &text.tokenizer.decode(&ids, true).unwrap());
    }

    /// The model: look at the text character by character, forgetting nothing.
    #[test]
    fn stop_strings_end_where_the_whole_text_says(
        text in "[ab<é]{0,30}",
        stops in prop::collection::vec("[ab<é]{1,4}", 0..4),
        cuts in prop::collection::vec(0_usize..30, 0..8),
        is_included: bool,
    ) {
        let (wanted, end) = naive(&text, &stops, is_included);
        let ending = if is_included { Ending::Included } else { Ending::Excluded };
        let mut matcher = StopStrings::new(stops.clone(), ending);
        let mut out = String::new();
        let mut given = String::new();
        let mut found = None;
        for piece in pieces(&text, &cuts) {
            given.push_str(&piece);
            if let Passed::Stopped(stop) = matcher.push(&piece, &mut out) {
                found = Some(stop);
                break;
            }
            // Exactly what may become a stop string is held back.
            let hold = stops.iter().map(|stop| held(&given, stop)).max().unwrap_or(0);
            prop_assert_eq!(&out, &given[..given.len() - hold]);
        }
        if found.is_none() {
            matcher.finish(&mut out);
        }
        prop_assert_eq!((out, found), (wanted, end));
    }
}

fn naive(text: &str, stops: &[String], is_included: bool) -> (String, Option<String>) {
    for (at, character) in text.char_indices() {
        let end = at + character.len_utf8();
        let fits = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
        if let Some(stop) = fits.max_by_key(|stop| stop.len()) {
            let keep = if is_included { end } else { end - stop.len() };
            return (text[..keep].to_owned(), Some(stop.clone()));
        }
    }
    (text.to_owned(), None)
}

fn held(text: &str, stop: &str) -> usize {
    let prefixes = stop.char_indices().map(|(at, _)| &stop[..at]);
    prefixes.filter(|prefix| text.ends_with(prefix)).map(str::len).max().unwrap_or(0)
}

fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (at, character) in text.chars().enumerate() {
        if cuts.contains(&at) {
            pieces.push(String::new());
        }
        pieces.last_mut().unwrap().push(character);
    }
    pieces
}

#[test]
fn looking_at_pieces_alone_would_miss_stop_strings() {
    // Negative control of the property: this is what it catches.
    let (whole, end) = naive("x</end>y", &["</end>".into()], false);
    assert_eq!((whole.as_str(), end.as_deref()), ("x", Some("</end>")));
    let alone: Vec<_> = ["x</e", "nd>y"].iter().map(|piece| naive(piece, &["</end>".into()], false).1).collect();
    assert_eq!(alone, [None, None]);
}

#[test]
fn empty_stop_strings_stop_nothing() {
    let mut stops = StopStrings::new(vec![String::new()], Ending::Excluded);
    let mut out = String::new();
    assert_eq!(stops.push("abc", &mut out), Passed::On);
    assert_eq!(out, "abc");
}

#[test]
fn only_the_first_space_of_an_answer_is_dropped_and_bytes_make_characters() {
    let text = fallback();
    let id = |name: &str| Token(text.tokenizer.token_to_id(name).unwrap());
    let tokens =
        [id("<s>"), id("▁hello"), id("▁world"), id("<0xE4>"), id("<0xBD>"), id("<0xA0>"), id("<0xE4>"), id("</s>")];
    assert_eq!(growing(&text, &tokens).last().unwrap(), "hello world你\u{fffd}");
    assert_eq!(text.decode(&tokens[..2], false), "<s> hello");
}

#[test]
fn decoders_that_cannot_be_streamed_are_refused_by_name() {
    let mut raw: serde_json::Value = serde_json::from_slice(&sentence().tokenizer).unwrap();
    raw["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let error = Text::from_files(&Files { tokenizer: raw.to_string().into(), ..Files::default() }).unwrap_err();
    assert!(matches!(&error, TextError::Decoder { kind } if kind == "WordPiece"), "{error}");
    let error = Text::from_files(&Files { tokenizer: b"{".to_vec(), ..Files::default() }).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
}

#[test]
fn a_begin_token_is_put_before_plain_prompts_as_the_configuration_says() {
    let with = |value: serde_json::Value| {
        let config = json!({ "bos_token": "<|begin|>", "add_bos_token": value }).to_string();
        Text::from_files(&Files { config: Some(config.into()), ..tiny() }).unwrap().encode("a", true).unwrap()
    };
    let (bos, a) = (Token(377), Token(97));
    assert_eq!(with(json!(true)), [bos, a]);
    assert_eq!(with(json!(null)), [bos, a], "the post processor decides");
    assert_eq!(with(json!(false)), [a]);
    let sentence = Text::from_files(&sentence()).unwrap();
    assert_eq!(sentence.encode("hello", true).unwrap()[0], Token(1), "where no post processor adds it");
    assert_ne!(sentence.encode("hello", false).unwrap()[0], Token(1));
}

#[test]
fn a_folder_is_read_whole_and_the_template_file_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let missing = Text::from_folder(folder.path()).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.json"), "{missing}");
    write("tokenizer.json", &tiny().tokenizer);
    write("tokenizer_config.json", &tiny().config.unwrap());
    write("config.json", br#"{"eos_token_id": [5, 378]}"#);
    write("generation_config.json", br#"{"eos_token_id": 7}"#);
    write("chat_template.json", br#"{"chat_template": "from json"}"#);
    let read = || Text::from_folder(folder.path()).unwrap();
    assert_eq!(read().eos(), [Token(5), Token(7), Token(378)]);
    assert_eq!(read().chat(&chat(json!([{ "role": "user", "content": "x" }]))).unwrap(), "from json");
    write("chat_template.jinja", b"from jinja");
    assert_eq!(read().chat(&chat(json!([{ "role": "user", "content": "x" }]))).unwrap(), "from jinja");
}

fn chat(messages: serde_json::Value) -> Chat {
    Chat { messages: Value::from_serialize(messages), is_prompted: true, ..Chat::default() }
}

/// A model with this template, rendered for one short message.
fn render(template: serde_json::Value, change: impl FnOnce(&mut Chat)) -> Result<String, TemplateError> {
    let config = json!({ "bos_token": "<|begin|>", "chat_template": template }).to_string();
    let mut text = Text::from_files(&Files { config: Some(config.into()), ..tiny() }).unwrap();
    text.fix_date(1_727_913_600);
    let mut chat = chat(json!([{ "role": "user", "content": "hi" }]));
    change(&mut chat);
    text.chat(&chat)
}

#[test]
fn templates_are_rendered_as_python_would() {
    for (template, wanted) in [
        ("{% if true %}\n  a\n{% endif %}\n    {% if true %}b{% endif %}\n", "  a\nb"),
        ("{{ messages[0].content.upper() }}{{ messages[0]['role'].startswith('us') }}", "HITrue"),
        ("{{ tools is none }}{{ tools is iterable }}{{ none }}", "TrueFalseNone"),
        ("{{ bos_token }}{{ strftime_now('%d %b %Y') }}", "<|begin|>03 Oct 2024"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "hi"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
        ("{{ {'b': [1, 2.5, none], 'a': \"<é&'\"} | tojson }}", "{\"b\": [1, 2.5, null], \"a\": \"<é&'\"}"),
        ("{{ {'b': 1, 'a': {}} | tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": {}\n}"),
        ("{{ {'b': 1, 'a': 1e-7} | tojson(sort_keys=true, separators=[',', ':']) }}", "{\"a\":1e-07,\"b\":1}"),
        ("{{ 'é🙂\\n' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude42\\n\""),
        ("{{ add_generation_prompt }}{{ missing is defined }}", "TrueFalse"),
    ] {
        assert_eq!(render(json!(template), |_| ()).as_deref(), Ok(wanted), "{template}");
    }
}

#[test]
fn failures_of_templates_are_told_apart() {
    let refused = render(json!("{{ raise_exception('no ' + messages[0].role) }}"), |_| ());
    assert_eq!(refused, Err(TemplateError::Refused("no user".into())));
    assert_eq!(render(json!(null), |_| ()), Err(TemplateError::Missing));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    assert!(matches!(render(json!(endless), |_| ()), Err(TemplateError::Failed(why)) if why.contains("steps")));
    assert!(matches!(render(json!("{% if %}"), |_| ()), Err(TemplateError::Failed(_))));
    assert!(
        matches!(render(json!("{{ strftime_now('%Q') }}"), |_| ()), Err(TemplateError::Failed(why)) if why.contains("%Q"))
    );
}

#[test]
fn named_templates_are_chosen_by_name_and_by_tools() {
    let named =
        json!([{ "name": "default", "template": "plain" }, { "name": "tool_use", "template": "{{ tools[0].name }}" }]);
    assert_eq!(render(named.clone(), |_| ()).unwrap(), "plain");
    let tools = Value::from_serialize(json!([{ "name": "hammer" }]));
    assert_eq!(render(named.clone(), |chat| chat.tools = tools.clone()).unwrap(), "hammer");
    assert_eq!(
        render(named.clone(), |chat| (chat.tools, chat.template) = (tools, Some("default".into()))).unwrap(),
        "plain"
    );
    let unknown = render(named, |chat| chat.template = Some("rag".into()));
    assert_eq!(unknown, Err(TemplateError::Unknown { name: "rag".into(), known: "default, tool_use".into() }));
}

#[test]
fn content_has_the_form_that_the_template_expects() {
    let parts = || {
        Value::from_serialize(
            json!([{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }]),
        )
    };
    let plain = "{{ messages[0].content }}";
    let walking = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}";
    assert_eq!(render(json!(plain), |chat| chat.messages = parts()).unwrap(), "a\nb");
    assert_eq!(render(json!(plain), |_| ()).unwrap(), "hi");
    let walking = json!(format!("{{# in message.content #}}{walking}"));
    assert_eq!(render(walking.clone(), |chat| chat.messages = parts()).unwrap(), "[a][b]");
    assert_eq!(render(walking, |_| ()).unwrap(), "[hi]");
    let call = json!([{ "role": "assistant", "content": null, "tool_calls": [{ "function": { "name": "f", "arguments": "{\"z\": 1, \"a\": 2}" } }] }]);
    let shown = "{{ messages[0].content }}{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    assert_eq!(
        render(json!(shown), |chat| chat.messages = Value::from_serialize(call)).unwrap(),
        "{\"z\": 1, \"a\": 2}"
    );
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, wanted) in [
        (0, "1970-01-01 Thu 00:00:00 12 AM"),
        (951_782_399, "2000-02-28 Mon 23:59:59 11 PM"),
        (951_782_400, "2000-02-29 Tue 00:00:00 12 AM"),
        (1_709_208_000, "2024-02-29 Thu 12:00:00 12 PM"),
        (4_107_542_400, "2100-03-01 Mon 00:00:00 12 AM"),
    ] {
        assert_eq!(strftime("%F %a %T %I %p", seconds).unwrap(), wanted);
    }
    assert_eq!(strftime("100%% %B %j", 0), Err('j'));
}
