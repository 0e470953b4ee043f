//! What goes over the wire: paths, the operations of a transaction, and the server's answers.

use base64::display::Base64Display;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use base64::engine::GeneralPurpose as Engine;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use base64::engine::Simd as Engine;
use base64::engine::general_purpose::PAD;
use base64::{DecodeError, Engine as _};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// Standard base64, by what the processor has for it: listings are full of it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static BASE64: LazyLock<Engine> = LazyLock::new(|| Engine::standard(PAD));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static BASE64: LazyLock<Engine> = LazyLock::new(|| Engine::new(&base64::alphabet::STANDARD, PAD));

/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// A key's slashes part its segments in the URL too.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// The largest body of a transaction that an agent takes by default (`txn_max_req_len`).
pub(super) const MAX_TXN_BODY: usize = 512 * 1024;

/// Values up to this size fit into a transaction that writes one, whatever the key: base64 makes four bytes of three,
/// and 8 KiB are enough for the JSON around the value and three of the longest paths with every byte escaped.
pub(super) const MAX_TXN_VALUE: usize = (MAX_TXN_BODY - 8192) / 4 * 3;

/// `text` as a part of a query.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// `path` as a part of a URL's path.
pub(super) fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, ENCODED_IN_PATH).to_string()
}

/// Whether Go prints every character, as far as can be told: its tables and ours may be of different ages.
///
/// Rust escapes for `Debug` exactly what Go doesn't print: controls, formats, separators, what is private or unassigned.
/// Rust also escapes quotes and the like, which are ASCII, and combining characters that begin a text, hence the `x`.
pub(super) fn is_printable(path: &str) -> bool {
    let is_escaped = |c: char| format!("x{c}").escape_debug().nth(1) == Some('\\');
    !path.chars().any(|c| !c.is_ascii() && is_escaped(c))
}

/// A number that no other write has, for the write's flags.
///
/// It makes every write a change: Consul leaves a key as it is, version included, when it is written with what it holds
/// already, and two writers of the same bytes could then both win with `atomic_put`. It is also how a write whose
/// answer doesn't carry the version is found again.
///
/// It has 53 bits: readers of JSON that take numbers for floating point ones see it as it is, it is none of the flags by which locks
/// are known, and listings have fewer digits.
pub(super) fn nonce() -> u64 {
    // Each `RandomState` has keys of its own, seeded by the system: the cheapest randomness in `std`.
    RandomState::new().build_hasher().finish() >> 11
}

/// The flags by which Consul's own clients know a lock, and whoever makes one that they are to respect.
pub(super) const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;
/// The flags by which they know a semaphore.
pub(super) const SEMAPHORE_FLAGS: u64 = 0xe0f6_9a2b_aa41_4de0;

/// One operation of a transaction, on a path of the server.
#[derive(Clone, Debug)]
pub(super) enum Op<'a> {
    /// Writes.
    Set { path: &'a str, value: &'a Bytes },
    /// Writes if the version is `index`; creates if that is 0.
    Cas { path: &'a str, value: &'a Bytes, index: u64 },
    /// Writes and lets `session` hold the key, which nobody else may hold.
    Lock { path: &'a str, value: &'a Bytes, session: &'a str },
    /// The same with the flags of a lock. Where the session holds the key already it only writes.
    Acquire { path: &'a str, value: &'a Bytes, session: &'a str },
    /// Writes and lets go of the key, which `session` must hold.
    Unlock { path: &'a str, value: &'a Bytes, session: &'a str },
    /// Reads; fails if there is nothing.
    Get { path: &'a str },
    /// Fails if there is something.
    CheckNotExists { path: &'a str },
    /// Fails if the version is another.
    CheckIndex { path: &'a str, index: u64 },
    /// Fails if another session holds the key, or none.
    CheckSession { path: &'a str, session: &'a str },
    /// Deletes, if there is something.
    Delete { path: &'a str },
    /// Reads everything whose path starts so.
    GetTree { prefix: &'a str },
    /// Deletes everything whose path starts so.
    DeleteTree { prefix: &'a str },
}

impl<'a> Op<'a> {
    fn verb(&self) -> &'static str {
        match self {
            Op::Set { .. } => "set",
            Op::Cas { .. } => "cas",
            Op::Lock { .. } | Op::Acquire { .. } => "lock",
            Op::Unlock { .. } => "unlock",
            Op::Get { .. } => "get",
            Op::CheckNotExists { .. } => "check-not-exists",
            Op::CheckIndex { .. } => "check-index",
            Op::CheckSession { .. } => "check-session",
            Op::Delete { .. } => "delete",
            Op::GetTree { .. } => "get-tree",
            Op::DeleteTree { .. } => "delete-tree",
        }
    }

    pub(super) fn path(&self) -> &'a str {
        match self {
            Op::Set { path, .. }
            | Op::Cas { path, .. }
            | Op::Lock { path, .. }
            | Op::Acquire { path, .. }
            | Op::Unlock { path, .. }
            | Op::Get { path }
            | Op::CheckNotExists { path }
            | Op::CheckIndex { path, .. }
            | Op::CheckSession { path, .. }
            | Op::Delete { path } => path,
            Op::GetTree { prefix } | Op::DeleteTree { prefix } => prefix,
        }
    }

    fn value(&self) -> Option<&'a Bytes> {
        match self {
            Op::Set { value, .. }
            | Op::Cas { value, .. }
            | Op::Lock { value, .. }
            | Op::Acquire { value, .. }
            | Op::Unlock { value, .. } => Some(value),
            _ => None,
        }
    }

    fn session(&self) -> Option<&'a str> {
        match self {
            Op::Lock { session, .. }
            | Op::Acquire { session, .. }
            | Op::Unlock { session, .. }
            | Op::CheckSession { session, .. } => Some(session),
            _ => None,
        }
    }

    fn flags(&self) -> u64 {
        match self {
            Op::Acquire { .. } => LOCK_FLAGS,
            _ => nonce(),
        }
    }

    fn index(&self) -> Option<u64> {
        match self {
            Op::Cas { index, .. } | Op::CheckIndex { index, .. } => Some(*index),
            _ => None,
        }
    }

    /// Whether the operation changes the store. The server answers transactions without such operations as reads.
    pub(super) fn is_write(&self) -> bool {
        self.value().is_some() || matches!(self, Op::Delete { .. } | Op::DeleteTree { .. })
    }

    /// Whether the answer has exactly one entry for this operation. The others have none, but for `get-tree`, which has
    /// one for each key.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self, Op::CheckNotExists { .. } | Op::Delete { .. } | Op::DeleteTree { .. } | Op::GetTree { .. })
    }
}

impl Serialize for Op<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut outer = serializer.serialize_map(Some(1))?;
        outer.serialize_entry("KV", &Fields(self))?;
        outer.end()
    }
}

/// The fields of an operation, without the `KV` around them.
struct Fields<'o, 'a>(&'o Op<'a>);

impl Serialize for Fields<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry("Verb", self.0.verb())?;
        fields.serialize_entry("Key", self.0.path())?;
        if let Some(value) = self.0.value() {
            fields.serialize_entry("Value", &Base64(value))?;
            fields.serialize_entry("Flags", &self.0.flags())?;
        }
        if let Some(index) = self.0.index() {
            fields.serialize_entry("Index", &index)?;
        }
        if let Some(session) = self.0.session() {
            fields.serialize_entry("Session", session)?;
        }
        fields.end()
    }
}

/// Bytes that are written as base64.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &*BASE64))
    }
}

/// Text within an `Option`, borrowed where it has no escapes: serde borrows a `Cow` only where it is a field itself.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A key as the server shows it, without its value.
#[derive(Deserialize)]
pub(super) struct Meta<'a> {
    #[serde(rename = "Key", borrow)]
    pub(super) path: Cow<'a, str>,
    #[serde(rename = "Flags")]
    pub(super) flags: u64,
    #[serde(rename = "ModifyIndex")]
    pub(super) index: u64,
    #[serde(rename = "Session", default, borrow)]
    pub(super) session: Option<Text<'a>>,
}

/// A key as the server shows it, with what makes it a lock.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LockMeta {
    flags: u64,
    create_index: u64,
    pub(super) modify_index: u64,
    /// How often the key was acquired since it was made; a plain write sets it to 0.
    lock_index: u64,
    session: Option<String>,
}

impl LockMeta {
    /// The session that holds the key.
    pub(super) fn holder(&self) -> Option<&str> {
        self.session.as_deref().filter(|session| !session.is_empty())
    }

    pub(super) fn is_lock(&self) -> bool {
        self.flags == LOCK_FLAGS
    }

    pub(super) fn is_semaphore(&self) -> bool {
        self.flags == SEMAPHORE_FLAGS
    }

    /// The index of the acquisition. kvactor makes the key anew with each, and other clients take the one that is there, which
    /// they don't write while they hold it.
    pub(super) fn token(&self) -> u64 {
        match self.lock_index {
            0 | 1 => self.create_index,
            _ => self.modify_index,
        }
    }
}

/// A key as the server shows it, with its value still in base64: much of a list may be left out.
#[derive(Deserialize)]
pub(super) struct Entry<'a> {
    #[serde(rename = "Key", borrow)]
    pub(super) path: Cow<'a, str>,
    #[serde(rename = "ModifyIndex")]
    pub(super) index: u64,
    /// Null where it is empty. An answer without it isn't one of the server's.
    #[serde(rename = "Value", borrow, deserialize_with = "Deserialize::deserialize")]
    value: Option<Text<'a>>,
}

impl Entry<'_> {
    /// The value; the empty one is written as null.
    pub(super) fn value(&self) -> Result<Bytes, DecodeError> {
        match &self.value {
            Some(Text(base64)) => decode(base64),
            None => Ok(Bytes::new()),
        }
    }
}

/// What `base64` stands for, in just as much memory: `Bytes` takes such a vector as it is, and a longer one only with an
/// allocation more.
fn decode(base64: &str) -> Result<Bytes, DecodeError> {
    let padding = base64.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    let mut value = vec![0; (base64.len() / 4 * 3).saturating_sub(padding)];
    match BASE64.decode_slice(base64, &mut value) {
        Ok(length) if length == value.len() => Ok(value.into()),
        // What isn't base64 has no such length.
        _ => BASE64.decode(base64).map(Bytes::from),
    }
}

/// The answer to a transaction that was applied, with a `T` for each entry: a [`Meta`] or an [`Entry`].
#[derive(Deserialize)]
pub(super) struct Applied<T> {
    /// Null where there is no result.
    #[serde(rename = "Results")]
    results: Option<Vec<AppliedOp<T>>>,
}

#[derive(Deserialize)]
struct AppliedOp<T> {
    #[serde(rename = "KV")]
    entry: T,
}

impl<T> Applied<T> {
    /// The entries, in the operations' order.
    pub(super) fn entries(self) -> impl Iterator<Item = T> {
        self.results.into_iter().flatten().map(|op| op.entry)
    }
}

/// The answer to a transaction that was not applied.
#[derive(Deserialize)]
pub(super) struct Refused {
    /// Why, in the operations' order; never empty.
    #[serde(rename = "Errors")]
    pub(super) errors: Vec<Refusal>,
}

/// What was wrong with one operation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Refusal {
    /// The operation's position.
    pub(super) op_index: usize,
    /// The server's words.
    pub(super) what: String,
}

impl Refusal {
    /// Whether nobody gets the key for now, because the session that held it ended. The words before these name the key, which
    /// may read like any of them.
    pub(super) fn is_lock_delay(&self) -> bool {
        self.what.ends_with("due to lock delay")
    }

    /// Whether the token may not do this. Other words name the key, which may read like these.
    pub(super) fn is_permission(&self) -> bool {
        self.what.starts_with("Permission denied")
    }

    /// Whether the session that was to hold the key is over.
    pub(super) fn is_session_over(&self) -> bool {
        self.what.starts_with("invalid session")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    #[test]
    fn paths_survive_the_url() {
        assert_eq!(encode_path("a b/c?d#e%f+g&h"), "a%20b/c%3Fd%23e%25f%2Bg%26h");
        assert_eq!(encode_path("é/~x-y_z.0"), "%C3%A9/~x-y_z.0");
        assert_eq!(encode("a/b"), "a%2Fb");
    }

    #[test]
    fn what_go_prints() {
        for path in [" !\"'\\~", "é/日本/😀", "cafe\u{301}", "\u{301}"] {
            assert!(is_printable(path), "{path:?}");
        }
        for odd in
            ['\u{a0}', '\u{ad}', '\u{378}', '\u{200b}', '\u{2028}', '\u{202e}', '\u{3000}', '\u{feff}', '\u{f0000}']
        {
            assert!(!is_printable(&format!("a/{odd}/b")), "{odd:?}");
        }
    }

    #[test]
    fn operations_carry_what_they_need() {
        let value = Bytes::from_static(b"x");
        let json = |op: Op<'_>| serde_json::to_value(op).unwrap()["KV"].clone();
        let set = json(Op::Set { path: "a", value: &value });
        assert_eq!((&set["Verb"], &set["Key"], &set["Value"]), (&"set".into(), &"a".into(), &"eA==".into()));
        assert!(set["Flags"].is_u64() && set.get("Index").is_none() && set.get("Session").is_none());
        let cas = json(Op::Cas { path: "a", value: &value, index: 7 });
        assert_eq!((&cas["Verb"], &cas["Index"]), (&"cas".into(), &7.into()));
        let acquire = json(Op::Acquire { path: "a", value: &value, session: "s" });
        assert_eq!((&acquire["Verb"], &acquire["Flags"]), (&"lock".into(), &3_304_740_253_564_472_344_u64.into()));
        let unlock = json(Op::Unlock { path: "a", value: &value, session: "s" });
        assert_eq!((&unlock["Verb"], &unlock["Session"]), (&"unlock".into(), &"s".into()));
        assert_eq!(json(Op::Get { path: "a" }), serde_json::json!({ "Verb": "get", "Key": "a" }));
    }

    #[test]
    fn no_two_writes_are_alike() {
        let nonces: std::collections::HashSet<_> = (0..1000).map(|_| nonce()).collect();
        assert_eq!(nonces.len(), 1000);
        let all = nonces.iter().fold(0, |all, nonce| all | nonce);
        assert_eq!(all, (1 << 53) - 1, "all bits are used, and no more");
        assert!(LOCK_FLAGS.min(SEMAPHORE_FLAGS) > all, "no write looks like a lock");
    }

    #[test]
    fn the_largest_value_of_a_txn_fits() {
        let (path, value) = ("\"".repeat(1025), Bytes::from(vec![0; MAX_TXN_VALUE]));
        let session = "00000000-0000-0000-0000-000000000000";
        let ops = [
            Op::CheckIndex { path: &path, index: u64::MAX },
            Op::Delete { path: &path },
            Op::Acquire { path: &path, value: &value, session },
        ];
        let size = serde_json::to_vec(&ops).unwrap().len();
        assert!(size <= MAX_TXN_BODY && size > MAX_TXN_BODY - 8192, "{size}");
    }

    #[test]
    fn a_key_that_reads_like_a_refusal() {
        let refusal = |what: &str| Refusal { op_index: 0, what: what.to_owned() };
        assert!(refusal("Permission denied").is_permission());
        assert!(refusal("Permission denied: token with AccessorID 'x' lacks permission 'key:write'").is_permission());
        assert!(!refusal(r#"failed to set key "a/Permission denied", index is stale"#).is_permission());
    }

    #[test]
    fn an_empty_value_is_null() {
        let list = r#"[{"Key":"a","ModifyIndex":3,"Value":null},{"Key":"b\u0026","ModifyIndex":4,"Value":"AP8="}]"#;
        let entries: Vec<Entry<'_>> = serde_json::from_str(list).unwrap();
        assert_eq!(entries[0].value().unwrap(), "");
        assert_eq!((entries[1].path.as_ref(), entries[1].index), ("b&", 4));
        assert_eq!(entries[1].value().unwrap(), &[0, 255][..]);
        assert!(serde_json::from_str::<Entry<'_>>(r#"{"Key":"a","ModifyIndex":3}"#).is_err(), "a value is missing");
    }

    #[test]
    fn the_token_of_a_lock() {
        let token = |lock, created, modified| {
            let json = format!(r#"{{"Flags":0,"CreateIndex":{created},"ModifyIndex":{modified},"LockIndex":{lock}}}"#);
            serde_json::from_str::<LockMeta>(&json).unwrap().token()
        };
        assert_eq!([token(1, 7, 7), token(1, 7, 9), token(0, 7, 9)], [7; 3], "whatever the holder or others write");
        assert_eq!(token(2, 7, 9), 9, "the key was there before");
    }

    #[test]
    fn answers_to_transactions() {
        let json = r#"{"Results":[{"KV":{"LockIndex":0,"Key":"L","Flags":5,"Value":null,"Session":"s","CreateIndex":48,
            "ModifyIndex":51}},{"KV":{"LockIndex":0,"Key":"m","Flags":0,"Value":"eA==","CreateIndex":1,
            "ModifyIndex":2}}],"Errors":null}"#;
        let metas: Vec<_> = serde_json::from_str::<Applied<Meta<'_>>>(json).unwrap().entries().collect();
        assert_eq!((metas[0].flags, metas[0].index), (5, 51));
        assert_eq!(metas[0].session.as_ref().map(|session| session.0.as_ref()), Some("s"));
        assert!(metas[1].session.is_none());
        let entries: Vec<_> = serde_json::from_str::<Applied<Entry<'_>>>(json).unwrap().entries().collect();
        assert_eq!((entries[0].value().unwrap(), entries[0].index), (Bytes::new(), 51));
        assert_eq!((entries[1].value().unwrap(), entries[1].path.as_ref()), (Bytes::from_static(b"x"), "m"));
        assert_eq!(serde_json::from_str::<Applied<Meta<'_>>>(r#"{"Results":null}"#).unwrap().entries().count(), 0);
        let refused: Refused =
            serde_json::from_str(r#"{"Results":null,"Errors":[{"OpIndex":1,"What":"no"}]}"#).unwrap();
        assert_eq!(refused.errors, [Refusal { op_index: 1, what: "no".into() }]);
    }

    /// What may become of an answer on its way.
    #[derive(Clone, Debug)]
    enum Mutation {
        Byte(prop::sample::Index, u8),
        Insert(prop::sample::Index, Vec<u8>),
        Remove(prop::sample::Index, usize),
        /// A part of it comes twice: fields, entries, digits.
        Repeat(prop::sample::Index, usize, usize),
        Cut(prop::sample::Index),
        Nest(&'static str, &'static str, usize),
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let at = any::<prop::sample::Index>;
        let telling = prop::sample::select(b"\"{}[],:\\0123456789-.eE+u=AnultrfKV \0\xff".to_vec());
        let words = prop::sample::select(vec![
            "null",
            "1e999",
            "-1",
            "1.0",
            "18446744073709551616",
            "\\ud800",
            "\\u0000",
            "\"Key\":\"x\",",
            "[[[[",
            "====",
        ]);
        prop_oneof![
            (at(), telling).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
            (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
            (at(), words).prop_map(|(at, word)| Mutation::Insert(at, word.into())),
            (at(), 1..20_usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
            (at(), 1..80_usize, 1..3_usize).prop_map(|(at, length, times)| Mutation::Repeat(at, length, times)),
            at().prop_map(Mutation::Cut),
            (1..3000_usize).prop_map(|depth| Mutation::Nest("[", "]", depth)),
            (1..3000_usize).prop_map(|depth| Mutation::Nest("{\"x\":", "}", depth)),
        ]
    }

    impl Mutation {
        fn apply(&self, body: &mut Vec<u8>) {
            let place = |at: &prop::sample::Index, body: &[u8]| at.index(body.len() + 1);
            match self {
                Mutation::Byte(at, byte) => {
                    let at = place(at, body);
                    body.splice(at..(at + 1).min(body.len()), [*byte]);
                }
                Mutation::Insert(at, bytes) => {
                    let at = place(at, body);
                    body.splice(at..at, bytes.iter().copied());
                }
                Mutation::Remove(at, length) => {
                    let at = place(at, body);
                    body.drain(at..(at + length).min(body.len()));
                }
                Mutation::Repeat(at, length, times) => {
                    let at = place(at, body);
                    let part = body[at..(at + length).min(body.len())].repeat(*times);
                    body.splice(at..at, part);
                }
                Mutation::Cut(at) => body.truncate(place(at, body)),
                Mutation::Nest(open, close, depth) => {
                    *body = [open.repeat(*depth).as_bytes(), body, close.repeat(*depth).as_bytes()].concat();
                }
            }
        }
    }

    proptest! {
        #[test]
        fn values_come_back_exactly(value in proptest::collection::vec(any::<u8>(), 0..400)) {
            let json = serde_json::to_string(&Base64(&value)).unwrap();
            let entry = format!(r#"{{"Key":"a","ModifyIndex":1,"Value":{json}}}"#);
            prop_assert_eq!(serde_json::from_str::<Entry<'_>>(&entry).unwrap().value().unwrap(), value);
        }

        #[test]
        fn base64_is_read_into_just_as_much_memory(
            text in prop_oneof![
                any::<String>(),
                "[A-Za-f+/=-]{0,12}",
                "([A-Z]{4}){0,4}([A-Z]A==|[A-Z]{2}A=)?",
                // Long enough for what processors have for it.
                "([A-Za-z0-9+/]{4}){10,90}([A-Z]A==|[A-Z]{2}A=|[!-~]{0,4})([A-Z]{4}){0,20}",
            ],
        ) {
            let value = decode(&text);
            prop_assert_eq!(&value, &STANDARD.decode(&text).map(Bytes::from));
            if let Ok(value) = value {
                let value = Vec::from(value);
                prop_assert_eq!(value.capacity(), value.len());
            }
        }

        /// An answer that was damaged on its way is refused, or taken for no other than what it says now.
        #[test]
        fn a_mutated_answer_is_refused_or_taken_at_its_word(
            list in prop::collection::vec(("[a-c\"\\\\é😀/]{1,6}", any::<u64>(), any::<Option<Vec<u8>>>()), 1..4),
            changes in prop::collection::vec(mutation(), 1..4),
        ) {
            let entry = |(path, index, value): &(String, u64, Option<Vec<u8>>)| {
                let value = value.as_ref().map(|value| STANDARD.encode(value));
                serde_json::json!({
                    "LockIndex": 0, "Key": path, "Flags": index, "Value": value, "CreateIndex": 1, "ModifyIndex": index,
                })
            };
            let mut body = serde_json::to_vec(&list.iter().map(entry).collect::<Vec<_>>()).unwrap();
            changes.iter().for_each(|change| change.apply(&mut body));
            let Ok(entries) = serde_json::from_slice::<Vec<Entry<'_>>>(&body) else { return Ok(()) };
            // What is read over may be more than JSON in general allows: numbers beyond all bounds, say.
            let Ok(said) = serde_json::from_slice::<Vec<serde_json::Value>>(&body) else { return Ok(()) };
            prop_assert_eq!(entries.len(), said.len());
            for (entry, said) in entries.iter().zip(said) {
                // Serde takes fields without names as well, in their order.
                let field = |name: &str, at: usize| said.get(name).or_else(|| said.get(at)).cloned().unwrap();
                let path = field("Key", 0);
                prop_assert_eq!(path.as_str(), Some(entry.path.as_ref()));
                prop_assert_eq!(field("ModifyIndex", 1).as_u64(), Some(entry.index));
                let value = field("Value", 2);
                match (entry.value(), value.as_str()) {
                    (Ok(found), Some(text)) => prop_assert_eq!(STANDARD.encode(found), text),
                    (Ok(found), None) => prop_assert!(value.is_null() && found.is_empty()),
                    (Err(_), text) => prop_assert!(text.is_some_and(|text| STANDARD.decode(text).is_err())),
                }
            }
        }

        #[test]
        fn other_answers_are_refused_or_taken_at_their_word(changes in prop::collection::vec(mutation(), 1..4)) {
            let txn = br#"{"Results":[{"KV":{"LockIndex":0,"Key":"L","Flags":5,"Value":"eA==","Session":"s",
                "CreateIndex":48,"ModifyIndex":51}}],"Errors":null}"#;
            let mut body = txn.to_vec();
            changes.iter().for_each(|change| change.apply(&mut body));
            let said = serde_json::from_slice::<serde_json::Value>(&body);
            if let (Ok(applied), Ok(said)) = (serde_json::from_slice::<Applied<Meta<'_>>>(&body), said) {
                for (at, meta) in applied.entries().enumerate() {
                    let results = said.get("Results").or_else(|| said.get(0)).unwrap();
                    let Some(said) = results[at].get("KV") else { continue };
                    let Some(index) = said.get("ModifyIndex") else { continue };
                    prop_assert_eq!(index.as_u64(), Some(meta.index));
                    prop_assert_eq!(said["Key"].as_str(), Some(meta.path.as_ref()));
                    prop_assert_eq!(said["Flags"].as_u64(), Some(meta.flags));
                }
            }
            let _ = serde_json::from_slice::<Applied<Entry<'_>>>(&body);
            let mut body = br#"{"Results":null,"Errors":[{"OpIndex":1,"What":"no"}]}"#.to_vec();
            changes.iter().for_each(|change| change.apply(&mut body));
            if let Ok(refused) = serde_json::from_slice::<Refused>(&body) {
                let all = refused.errors.iter().filter(|refusal| refusal.is_lock_delay() && refusal.is_session_over());
                prop_assert_eq!(all.count(), 0);
            }
            let mut body = br#"{"Flags":0,"CreateIndex":1,"ModifyIndex":2,"LockIndex":2,"Session":"s"}"#.to_vec();
            changes.iter().for_each(|change| change.apply(&mut body));
            let said = serde_json::from_slice::<serde_json::Value>(&body);
            if let (Ok(meta), Ok(said)) = (serde_json::from_slice::<LockMeta>(&body), said) {
                let numbers = |names: &[&str], at: &[usize]| -> Vec<u64> {
                    let field = |(name, at): (&&str, &usize)| said.get(*name).or_else(|| said.get(*at))?.as_u64();
                    names.iter().zip(at).filter_map(field).collect()
                };
                prop_assert!(numbers(&["CreateIndex", "ModifyIndex"], &[1, 2]).contains(&meta.token()));
            }
        }

        #[test]
        fn no_answer_makes_it_panic(body in any::<Vec<u8>>()) {
            let _ = serde_json::from_slice::<Applied<Meta<'_>>>(&body);
            let _ = serde_json::from_slice::<Applied<Entry<'_>>>(&body);
            let _ = serde_json::from_slice::<Vec<Entry<'_>>>(&body);
            let _ = serde_json::from_slice::<Refused>(&body);
        }
    }
}
