//! [`Elements`]: a list in JSON that is read while it arrives.

use super::codec::Entry;
use crate::error::{Error, Result};
use bytes::{Buf, BytesMut};

/// So many bytes are read at once: lists of common sizes whole, which is faster, and still little beside those that fill memory.
const PORTION: usize = 512 * 1024;

/// What has arrived of a list and wasn't shown yet.
pub(super) struct Elements {
    rest: BytesMut,
    portion: usize,
    /// With how many bytes it is worth another try: those of a large element arrive little by little, and each try reads it from
    /// its beginning.
    worth_a_try: usize,
    place: Place,
}

/// What comes next in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Beginning,
    FirstOrEnd,
    CommaOrEnd,
    Element,
    Nothing,
}

/// What was wrong.
#[derive(Debug)]
pub(super) enum Flaw {
    Garbled(serde_json::Error),
    /// The list has no end.
    CutOff,
    /// Whoever took the elements didn't take one.
    Refused(Error),
}

impl Elements {
    pub(super) fn new() -> Self {
        Elements::in_portions(PORTION)
    }

    fn in_portions(portion: usize) -> Self {
        Elements { rest: BytesMut::new(), portion, worth_a_try: portion, place: Place::Beginning }
    }

    /// Shows `take` the elements that this piece completes.
    pub(super) fn take(&mut self, piece: &[u8], take: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<(), Flaw> {
        self.rest.extend_from_slice(piece);
        if self.rest.len() < self.worth_a_try {
            return Ok(());
        }
        self.show(take)?;
        self.worth_a_try = self.portion.max(2 * self.rest.len());
        Ok(())
    }

    /// Nothing more arrives.
    pub(super) fn end(mut self, take: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<(), Flaw> {
        self.show(take)?;
        if self.place == Place::Nothing { Ok(()) } else { Err(Flaw::CutOff) }
    }

    fn show(&mut self, take: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<(), Flaw> {
        let rest = std::mem::take(&mut self.rest);
        // As a whole this is checked far faster than string by string. The last character may be there in part.
        let (text, flaw) = match std::str::from_utf8(&rest) {
            Ok(text) => (text, None),
            Err(error) => (valid(&rest, &error), error.error_len().map(|_| error)),
        };
        let shown = self.show_of(text, take)?;
        if let Some(error) = flaw {
            return Err(Flaw::Garbled(serde::de::Error::custom(error)));
        }
        self.rest = rest;
        self.rest.advance(shown);
        Ok(())
    }

    /// Shows what is whole in this text, and returns how much that is.
    fn show_of(&mut self, text: &str, take: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<usize, Flaw> {
        let mut shown = 0;
        loop {
            let rest = text[shown..].trim_start_matches([' ', '\t', '\r', '\n']);
            shown = text.len() - rest.len();
            shown += match (self.place, rest.bytes().next()) {
                (_, None) => return Ok(shown),
                (Place::Beginning, Some(b'[')) => self.go_to(Place::FirstOrEnd),
                (Place::FirstOrEnd | Place::CommaOrEnd, Some(b']')) => self.go_to(Place::Nothing),
                (Place::CommaOrEnd, Some(b',')) => self.go_to(Place::Element),
                (Place::FirstOrEnd | Place::Element, Some(b'{')) => match element(rest)? {
                    Some((entry, length)) => {
                        take(entry).map_err(Flaw::Refused)?;
                        self.place = Place::CommaOrEnd;
                        length
                    }
                    None => return Ok(shown),
                },
                _ => return Err(Flaw::Garbled(serde::de::Error::custom("this is no list of keys"))),
            };
        }
    }

    /// Past a sign of one byte.
    fn go_to(&mut self, place: Place) -> usize {
        self.place = place;
        1
    }
}

/// What comes before the error.
fn valid<'t>(text: &'t [u8], error: &std::str::Utf8Error) -> &'t str {
    text.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
}

/// The element that `text` begins with, and its length; none where its end is missing.
fn element(text: &str) -> Result<Option<(Entry<'_>, usize)>, Flaw> {
    let mut elements = serde_json::Deserializer::from_str(text).into_iter();
    match elements.next() {
        Some(Ok(entry)) => Ok(Some((entry, elements.byte_offset()))),
        Some(Err(error)) if !error.is_eof() => Err(Flaw::Garbled(error)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = r#"[ {"Key":"a","ModifyIndex":7,"Value":"eA=="}, {"Key":"b,]{}\\\"","ModifyIndex":8,"Value":null},
        {"Flags":0,"Key":"\u00e9","ModifyIndex":9,"Value":"eHl6eHl6eHl6"} ]
"#;

    /// What is shown of a text that arrives in pieces of so many bytes.
    fn shown(text: &[u8], size: usize) -> Result<Vec<(String, u64, usize)>, Flaw> {
        let mut all = Vec::new();
        let mut take = |entry: Entry<'_>| {
            all.push((entry.path.to_string(), entry.index, entry.value().unwrap().len()));
            Ok(())
        };
        let mut elements = Elements::in_portions(1);
        for piece in text.chunks(size) {
            elements.take(piece, &mut take)?;
        }
        elements.end(&mut take)?;
        Ok(all)
    }

    #[test]
    fn a_list_is_the_same_in_pieces_of_all_sizes() {
        let expected = [("a".to_owned(), 7, 1), ("b,]{}\\\"".to_owned(), 8, 0), ("\u{e9}".to_owned(), 9, 9)];
        for size in 1..=LIST.len() {
            assert_eq!(shown(LIST.as_bytes(), size).unwrap(), expected, "{size}");
        }
        assert!(shown(b"[]", 1).unwrap().is_empty());
    }

    #[test]
    fn a_list_without_an_end_is_an_error_wherever_it_breaks_off() {
        let whole = LIST.trim_end();
        for end in 0..whole.len() {
            assert!(matches!(shown(&whole.as_bytes()[..end], 7), Err(Flaw::CutOff)), "{end}");
        }
    }

    #[test]
    fn what_is_no_list_of_keys_is_an_error() {
        let odd: [&[u8]; 9] = [b"[\x0c]", b"null", b"{}", b"[1]", b"[{}]", b"[{\"Key\":1}]", b"[]]", b"[,", b"[\xff"];
        for text in odd {
            assert!(matches!(shown(text, 1), Err(Flaw::Garbled(_))), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_large_element_is_not_read_anew_with_each_piece() {
        let mut elements = Elements::in_portions(1);
        let mut take = |_: Entry<'_>| Ok(());
        elements.take(b"[{\"Key\":\"", &mut take).unwrap();
        let tried = (0..1000).filter(|_| {
            let before = elements.worth_a_try;
            elements.take(&[b'x'; 100], &mut take).unwrap();
            elements.worth_a_try != before
        });
        assert!(tried.count() < 20);
    }

    proptest! {
        /// Whatever becomes of a list on its way, its pieces say what the whole says.
        #[test]
        fn pieces_say_what_the_whole_says(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<Option<u8>>()), 0..3),
            (size, portion) in (1..40_usize, 1..80_usize),
        ) {
            let mut text = LIST.as_bytes().to_vec();
            for (at, byte) in changes {
                let at = at.index(text.len());
                match byte {
                    Some(byte) => text[at] = byte,
                    None => drop(text.remove(at)),
                }
            }
            let whole = serde_json::from_slice::<Vec<Entry<'_>>>(&text).ok();
            let paths = |entries: Vec<Entry<'_>>| entries.iter().map(|entry| entry.path.to_string()).collect::<Vec<_>>();
            let mut shown = Vec::new();
            let mut take = |entry: Entry<'_>| {
                shown.push(entry.path.to_string());
                Ok(())
            };
            let mut elements = Elements::in_portions(portion);
            let pieces = text.chunks(size).try_for_each(|piece| elements.take(piece, &mut take));
            let read = pieces.and_then(|()| elements.end(&mut take));
            prop_assert_eq!(read.is_ok().then_some(shown), whole.map(paths));
        }
    }
}
