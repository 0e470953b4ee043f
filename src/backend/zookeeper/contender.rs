//! Contenders of locks, by the names of their znodes beneath the lock's znode.
//!
//! | program | name | what it heeds |
//! |---|---|---|
//! | kazoo's `Lock`, `WriteLock`, `Election` | `<guid>__lock__<number>` | such names alone |
//! | Curator's `InterProcessMutex`, `LeaderSelector` | `_c_<guid>-lock-<number>` | such names; others sort behind them |
//! | go-zookeeper's `Lock` | `_c_<guid>-lock-<number>` | both |
//! | kvactor | both, as twins with numbers that follow each other | both |
//!
//! The server gives the numbers, in one sequence for all names; the lowest holds the lock. Kazoo and Curator don't see each
//! other, but each sees one of our twins, which are made, and deleted, at one moment: so we exclude all of them, and they us.
//! The first twin carries the value; a guid of 32 digits where Curator has dashes says that the second is not Curator's.
//!
//! A foreign holder's value is its znode's data, whatever its program puts there. That of a contender of ours is published when
//! the second twin was written after it was made; one that is first and hasn't is about to.

/// How other kinds of locks call their contenders.
const KAZOO: &str = "__lock__";
const KAZOO_READER: &str = "__rlock__";
const PROTECTED: &str = "_c_";
const CURATOR: &str = "-lock-";

/// How many digits the server gives to a number, at least.
const DIGITS: usize = 10;

/// How many digits our guids, kazoo's and go-zookeeper's have. Curator's have four dashes in addition.
const GUID: usize = 32;
const DASHED_GUID: usize = GUID + 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Kazoo,
    Curator,
    /// It contends for something that isn't a lock for one: kazoo's readers, Curator's read-write locks, semaphores, latches.
    Other,
}

/// A contender, as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contender<'n> {
    pub(super) name: &'n str,
    dialect: Dialect,
    guid: &'n str,
    number: i64,
}

impl<'n> Contender<'n> {
    /// None: this is no contender's name.
    pub(super) fn parse(name: &'n str) -> Option<Self> {
        let (rest, number) = split_number(name)?;
        let (dialect, guid) = split_protected(rest).or_else(|| split_kazoo(rest))?;
        Some(Contender { name, dialect, guid, number })
    }

    /// Whether the two were made together, by a store.
    fn is_twin_of(&self, other: &Self) -> bool {
        let (first, second) = if self.number < other.number { (self, other) } else { (other, self) };
        first.dialect == Dialect::Kazoo
            && second.dialect == Dialect::Curator
            && first.guid == second.guid
            && first.number + 1 == second.number
    }
}

/// The number at the end, with a minus where the server's counter has run over.
fn split_number(name: &str) -> Option<(&str, i64)> {
    let rest = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = &name[rest.len()..];
    if number.len() != DIGITS {
        return None;
    }
    let parsed: i64 = number.parse().ok()?;
    // A name of Curator's has a dash before its number in any case.
    match rest.strip_suffix('-') {
        Some(kind) if kind.ends_with(['-', '_']) => Some((kind, -parsed)),
        _ => Some((rest, parsed)),
    }
}

fn split_kazoo(rest: &str) -> Option<(Dialect, &str)> {
    let (dialect, guid) = match rest.strip_suffix(KAZOO) {
        Some(guid) => (Dialect::Kazoo, guid),
        None => (Dialect::Other, rest.strip_suffix(KAZOO_READER)?),
    };
    (guid.len() == GUID && is_hex(guid)).then_some((dialect, guid))
}

fn split_protected(rest: &str) -> Option<(Dialect, &str)> {
    let inside = rest.strip_prefix(PROTECTED)?;
    [GUID, DASHED_GUID].into_iter().find_map(|length| {
        let (guid, kind) = inside.split_at_checked(length)?;
        let dialect = if kind == CURATOR { Dialect::Curator } else { Dialect::Other };
        (is_hex(&guid.replace('-', "")) && kind.starts_with('-')).then_some((dialect, guid))
    })
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The path of the znode that an event at `path` concerns: for a contender that is its lock.
pub(super) fn subject(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((lock, name)) if Contender::parse(name).is_some() => lock,
        _ => path,
    }
}

/// The names of our twins, or what they begin with, before the server adds a number.
pub(super) fn twin_prefixes(nonce: &str) -> [String; 2] {
    [format!("{nonce}{KAZOO}"), format!("{PROTECTED}{nonce}{CURATOR}")]
}

/// The names of our twins with these numbers.
pub(super) fn twins(guid: &str, number: i64) -> [String; 2] {
    let [first, second] = twin_prefixes(guid);
    [format!("{first}{number:0DIGITS$}"), format!("{second}{:0DIGITS$}", number + 1)]
}

/// The names that our twins get where they are the first ever in their line.
pub(super) fn first_twins(nonce: &str) -> [String; 2] {
    twins(nonce, 0)
}

/// The path of a znode that is made and deleted at one moment, so that those who watch the lock of the contender at `path`
/// look at it.
pub(super) fn nudge_beside(path: &str) -> String {
    let end = path.len().saturating_sub(DIGITS);
    format!("{}{}", path.get(..end).unwrap_or(path), i32::MAX)
}

/// The name of our first twin, and that of the other.
pub(super) fn with_twin(name: &str) -> Option<[String; 2]> {
    Contender::parse(name).map(|Contender { guid, number, .. }| twins(guid, number))
}

/// Those who contend for a lock, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Line<'n>(Vec<Contender<'n>>);

impl<'n> Line<'n> {
    pub(super) fn of(names: &'n [String]) -> Self {
        let mut contenders: Vec<_> = names.iter().filter_map(|name| Contender::parse(name)).collect();
        contenders.sort_unstable_by_key(|contender| contender.number);
        Line(contenders)
    }

    pub(super) fn first(&self) -> Option<Contender<'n>> {
        self.0.first().copied()
    }

    /// The first of our twins with this nonce.
    pub(super) fn find(&self, nonce: &str) -> Option<Contender<'n>> {
        let ours = |contender: &&Contender<'_>| contender.dialect == Dialect::Kazoo && contender.guid == nonce;
        self.0.iter().find(ours).copied()
    }

    /// Whoever is just ahead.
    pub(super) fn ahead_of(&self, contender: &Contender<'_>) -> Option<Contender<'n>> {
        self.0.iter().rev().find(|other| other.number < contender.number).copied()
    }

    /// The other of a pair that a store made.
    pub(super) fn twin_of(&self, contender: &Contender<'_>) -> Option<Contender<'n>> {
        self.0.iter().find(|other| other.is_twin_of(contender)).copied()
    }

    /// Whether a store made it.
    pub(super) fn is_ours(&self, contender: &Contender<'_>) -> bool {
        self.twin_of(contender).is_some()
    }

    /// The second twin of whoever is next, if that is one of ours, and ours of this name holds the lock.
    pub(super) fn heir_of(&self, holder: &str) -> Option<Contender<'n>> {
        let [first, second, next, ..] = &self.0[..] else { return None };
        let holds = first.name == holder && first.is_twin_of(second);
        self.twin_of(next).filter(|_| holds)
    }

    /// Whether another program has a contender here.
    pub(super) fn has_foreign(&self) -> bool {
        self.0.iter().any(|contender| !self.is_ours(contender))
    }

    /// One that contends for another kind of lock.
    pub(super) fn misfit(&self) -> Option<Contender<'n>> {
        self.0.iter().find(|contender| contender.dialect == Dialect::Other).copied()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'n str> {
        self.0.iter().map(|contender| contender.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";
    const DASHED: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn dialect(name: &str) -> Option<(Dialect, i64)> {
        Contender::parse(name).map(|contender| (contender.dialect, contender.number))
    }

    #[test]
    fn every_dialect_is_understood() {
        for (name, expected) in [
            (format!("{NONCE}__lock__0000000017"), (Dialect::Kazoo, 17)),
            (format!("{NONCE}__lock__-2147483648"), (Dialect::Kazoo, -2_147_483_648)),
            (format!("_c_{DASHED}-lock-0000000003"), (Dialect::Curator, 3)),
            (format!("_c_{DASHED}-lock--0000000003"), (Dialect::Curator, -3)),
            (format!("_c_{NONCE}-lock-0000000004"), (Dialect::Curator, 4)),
            (format!("{NONCE}__rlock__0000000017"), (Dialect::Other, 17)),
            (format!("_c_{DASHED}-__READ__0000000001"), (Dialect::Other, 1)),
            (format!("_c_{DASHED}-lease-0000000001"), (Dialect::Other, 1)),
            (format!("_c_{DASHED}-latch-0000000001"), (Dialect::Other, 1)),
        ] {
            assert_eq!(dialect(&name), Some(expected), "{name}");
        }
    }

    #[test]
    fn keys_are_no_contenders() {
        for name in [
            "a",
            "0000000001",
            "lock-0000000001",
            "my-lock-0000000001",
            "x__lock__0000000001",
            "_c_x-lock-0000000001",
            &format!("{NONCE}__lock__1"),
            &format!("{NONCE}__lock__"),
            &format!("_c_{DASHED}-member"),
            &format!("{NONCE}__lock__0000000001/x"),
            "é漢字é漢字é漢字é漢字é漢字é漢字__lock__0000000001",
        ] {
            assert_eq!(dialect(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_alone_make_the_order() {
        let names = [
            format!("_c_{DASHED}-lock-0000000004"),
            format!("ffffffffffffffffffffffffffffffff{KAZOO}0000000001"),
            format!("_c_{NONCE}-lock-0000000003"),
            format!("{NONCE}__lock__0000000002"),
            "key".to_owned(),
        ];
        let line = Line::of(&names);
        assert_eq!(line.names().collect::<Vec<_>>(), [&names[1], &names[3], &names[2], &names[0]]);
        let own = line.find(NONCE).unwrap();
        assert_eq!((own.name, line.ahead_of(&own)), (names[3].as_str(), line.first()));
        assert!(line.is_ours(&own) && !line.is_ours(&line.first().unwrap()) && line.has_foreign());
        assert_eq!(line.ahead_of(&line.first().unwrap()), None);
        assert_eq!(with_twin(own.name), Some([names[3].clone(), names[2].clone()]));
    }

    #[test]
    fn who_holds_a_lock_and_no_other_has_an_heir() {
        let [first, second] = first_twins(NONCE);
        let next = twins(&"f".repeat(GUID), 2);
        let foreign = format!("_c_{DASHED}-lock-0000000004");
        let mut names = vec![foreign, next[1].clone(), second, next[0].clone(), first];
        assert_eq!(Line::of(&names).heir_of(&names[4]).unwrap().name, next[1]);
        assert_eq!(Line::of(&names).heir_of(&next[0]), None, "it only waits, or its heir is foreign");
        names.retain(|name| *name != next[0]);
        assert_eq!(Line::of(&names).heir_of(&names[3]), None, "half of a pair");
        names.retain(|name| *name != next[1]);
        assert_eq!(Line::of(&names).heir_of(&names[2]), None, "a foreign one shows its value anyway");
        assert_eq!(Line::of(&names[1..]).heir_of(&names[2]), None, "nobody is next");
        assert_eq!(Line::of(&names[2..]).heir_of(&names[2]), None, "half of a pair holds nothing");
    }

    #[test]
    fn a_line_of_stores_has_nobody_foreign() {
        let [first, second] = first_twins(NONCE);
        let names = [second, first];
        assert!(!Line::of(&names).has_foreign());
        assert!(Line::of(&names[..1]).has_foreign(), "half of a pair is like any other contender");
    }

    #[test]
    fn what_happens_to_a_contender_concerns_its_lock() {
        assert_eq!(subject(&format!("/app/job/{NONCE}__lock__0000000001")), "/app/job");
        assert_eq!(subject("/app/job/key"), "/app/job/key");
        assert_eq!(subject("/"), "/");
    }
}
