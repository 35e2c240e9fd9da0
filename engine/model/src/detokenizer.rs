//! Tokens to text one at a time: never half a character, never a part of a stop string.
//!
//! Pure: the stepper feeds each sampled token and sends on what comes back. Three things are held back: the bytes of an
//! unfinished character (3 at most), text that may be the beginning of a stop string, and nothing else. The outputs together
//! are the lossy decoding of all tokens, cut where the first stop string begins.

use compact_str::CompactString;

use crate::Tokenizer;

/// How a stream is decoded.
#[derive(Clone, Debug, Default)]
pub struct DetokenizerOptions {
    /// Leaves out the spelling of control tokens.
    pub skip_control: bool,
    /// The first token begins a text, so the space that SentencePiece put before it is left out.
    pub at_text_start: bool,
    /// Strings that end the text; an empty one is ignored.
    pub stop_strings: Vec<String>,
    /// Stop strings are looked for in the text after this many tokens.
    pub stops_after: usize,
}

/// What one token adds to the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetokenizerOutput {
    /// Text that is safe to send; often empty.
    pub text: CompactString,
    /// Index of the stop string that matched; from then on no text comes any more.
    pub stop: Option<usize>,
}

/// Decodes a stream of tokens.
///
/// A stop string matches as soon as its last byte is decoded, so the match that ends first wins; of those that end together
/// the longest, then the one listed first. The matched string and all after it are dropped.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_control: bool,
    /// The next text may begin with a space that is not part of it.
    strip_space: bool,
    /// An unfinished character.
    tail: Vec<u8>,
    /// Decoded text that may be the beginning of a stop string.
    held: String,
    stops: Vec<StopMatcher>,
    /// How many more tokens are passed on without a look for stop strings.
    stops_after: usize,
    matched: Option<usize>,
}

impl Detokenizer {
    /// Starts a stream.
    pub fn new(tokenizer: &Tokenizer, options: DetokenizerOptions) -> Detokenizer {
        let stops = options.stop_strings.iter().map(|stop| StopMatcher::new(stop.as_bytes())).collect();
        Detokenizer {
            tokenizer: tokenizer.clone(),
            skip_control: options.skip_control,
            strip_space: options.at_text_start && tokenizer.strips_space(),
            tail: Vec::new(),
            held: String::new(),
            stops,
            stops_after: options.stops_after,
            matched: None,
        }
    }

    /// Feeds one token. An id that no token has, as in the padding of a model's vocabulary, decodes to nothing.
    pub fn push(&mut self, id: u32) -> DetokenizerOutput {
        let looks_for_stops = self.stops_after == 0;
        self.stops_after = self.stops_after.saturating_sub(1);
        if self.matched.is_some() || (self.skip_control && self.tokenizer.is_control(id)) {
            return DetokenizerOutput { text: CompactString::default(), stop: self.matched };
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.tail.extend_from_slice(bytes);
        let num_held = self.held.len();
        self.take_characters();
        if !looks_for_stops {
            return self.release(0);
        }
        self.advance(num_held)
    }

    /// Ends the stream and returns what was held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        let num_held = self.held.len();
        self.held.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.tail)));
        let text = self.advance(num_held).text;
        text.into_string() + &std::mem::take(&mut self.held)
    }

    /// Adds the bytes that are whole characters or can never become one to `held`; an unfinished character stays in `tail`.
    fn take_characters(&mut self) {
        let text = &mut self.held;
        let mut unfinished = 0;
        let mut chunks = self.tail.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            // No error length: the bytes are right so far and only end too early.
            let is_unfinished =
                chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_unfinished {
                unfinished = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.tail.drain(..self.tail.len() - unfinished);
    }

    /// Looks for stop strings in what is held from byte `from` on, and releases what cannot belong to one.
    fn advance(&mut self, from: usize) -> DetokenizerOutput {
        for (index, &byte) in self.held.as_bytes().iter().enumerate().skip(from) {
            let mut longest: Option<(usize, usize)> = None;
            for (stop, matcher) in self.stops.iter_mut().enumerate() {
                if matcher.push(byte) && longest.is_none_or(|(_, len)| matcher.stop.len() > len) {
                    longest = Some((stop, matcher.stop.len()));
                }
            }
            if let Some((stop, len)) = longest {
                let text = CompactString::from(&self.held[..index + 1 - len]);
                self.held.clear();
                self.matched = Some(stop);
                return DetokenizerOutput { text, stop: self.matched };
            }
        }
        let num_held = self.stops.iter().map(|matcher| matcher.matched).max().unwrap_or(0);
        self.release(num_held)
    }

    /// Releases all that is held but the last `num_held` bytes. A text of up to 24 bytes allocates nothing.
    fn release(&mut self, num_held: usize) -> DetokenizerOutput {
        let released = self.held.len() - num_held;
        let text = CompactString::from(&self.held[..released]);
        self.held.drain(..released);
        DetokenizerOutput { text, stop: None }
    }
}

/// Knuth-Morris-Pratt search for one stop string in a stream of bytes.
#[derive(Clone, Debug)]
struct StopMatcher {
    stop: Vec<u8>,
    /// For each length of a matched beginning, the length of the longest shorter one that it ends with.
    fallback: Vec<usize>,
    /// How much of the stop string the stream ends with.
    matched: usize,
}

impl StopMatcher {
    fn new(stop: &[u8]) -> StopMatcher {
        let mut fallback = vec![0; stop.len() + 1];
        let mut matched = 0;
        for len in 2..=stop.len() {
            while matched > 0 && stop[len - 1] != stop[matched] {
                matched = fallback[matched];
            }
            matched += usize::from(stop[len - 1] == stop[matched]);
            fallback[len] = matched;
        }
        StopMatcher { stop: stop.to_vec(), fallback, matched: 0 }
    }

    /// Says whether the stream now ends with the stop string.
    fn push(&mut self, byte: u8) -> bool {
        if self.stop.is_empty() {
            return false;
        }
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        self.matched == self.stop.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::testing;

    fn detokenizer(tokenizer: &Tokenizer, stops: &[&str]) -> Detokenizer {
        let stop_strings = stops.iter().map(|&stop| stop.to_owned()).collect();
        Detokenizer::new(
            tokenizer,
            DetokenizerOptions { skip_control: true, at_text_start: true, stop_strings, stops_after: 0 },
        )
    }

    /// Feeds single bytes; returns each output.
    fn feed(detokenizer: &mut Detokenizer, bytes: &[u8]) -> Vec<DetokenizerOutput> {
        bytes.iter().map(|&byte| detokenizer.push(testing::byte_id(byte))).collect()
    }

    fn texts(outputs: &[DetokenizerOutput]) -> Vec<&str> {
        outputs.iter().map(|output| output.text.as_str()).collect()
    }

    #[test]
    fn looks_for_stops_only_after_the_least_number_of_tokens() {
        let tokenizer = testing::bytes();
        let options =
            DetokenizerOptions { stop_strings: vec!["ab".into()], stops_after: 3, ..DetokenizerOptions::default() };
        let outputs = feed(&mut Detokenizer::new(&tokenizer, options), b"abababx");
        assert_eq!(texts(&outputs), ["a", "b", "a", "b", "", "", ""]);
        assert_eq!(outputs[5].stop, Some(0));
        let options = DetokenizerOptions {
            skip_control: true,
            stop_strings: vec!["ab".into()],
            stops_after: 1,
            ..DetokenizerOptions::default()
        };
        let mut stream = Detokenizer::new(&tokenizer, options);
        stream.push(testing::CONTROL);
        assert_eq!(feed(&mut stream, b"ab")[1].stop, Some(0), "a token without text counts");
    }

    #[test]
    fn holds_an_unfinished_character() {
        let tokenizer = testing::bytes();
        let mut stream = detokenizer(&tokenizer, &[]);
        assert_eq!(texts(&feed(&mut stream, "aé🙂".as_bytes())), ["a", "", "é", "", "", "", "🙂"]);
        assert_eq!(texts(&feed(&mut stream, &[0xf0, 0x9f, b'x', 0xff])), ["", "", "\u{fffd}x", "\u{fffd}"]);
        assert_eq!(texts(&feed(&mut stream, &[0xe2, 0x96])), ["", ""]);
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn holds_the_beginning_of_a_stop_string() {
        let tokenizer = testing::bytes();
        let mut stream = detokenizer(&tokenizer, &["", "aab", "ax"]);
        let outputs = feed(&mut stream, b"aaacaabz");
        assert_eq!(texts(&outputs), ["", "", "a", "aac", "", "", "", ""]);
        assert_eq!(outputs[6].stop, Some(1));
        assert_eq!(outputs[7].stop, Some(1), "after the stop nothing comes");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn first_end_wins_then_the_longest_then_the_first_listed() {
        let tokenizer = testing::bytes();
        let stop = |stops: &[&str], text: &str| {
            let mut stream = detokenizer(&tokenizer, stops);
            let outputs = feed(&mut stream, text.as_bytes());
            (outputs.concat_text(), outputs.last().unwrap().stop)
        };
        assert_eq!(stop(&["abcd", "bc"], "xabcd"), ("xa".to_owned(), Some(1)));
        assert_eq!(stop(&["c", "bc", "abc", "bc"], "xabc"), ("x".to_owned(), Some(2)));
        assert_eq!(stop(&["bc", "bc"], "abc"), ("a".to_owned(), Some(0)));
    }

    #[test]
    fn padding_ids_and_control_tokens_say_nothing() {
        let tokenizer = testing::bytes();
        let mut stream = detokenizer(&tokenizer, &["b"]);
        assert_eq!(stream.push(u32::MAX), DetokenizerOutput::default());
        assert_eq!(stream.push(testing::CONTROL), DetokenizerOutput::default());
        let options = DetokenizerOptions::default();
        let text = Detokenizer::new(&tokenizer, options).push(testing::CONTROL).text;
        assert_eq!(text, "<|end|>");
    }

    #[test]
    fn a_text_start_loses_one_space_of_sentencepiece() {
        let tokenizer = testing::sentencepiece(true);
        let ids = tokenizer.encode_text("  ab", false, false).unwrap();
        let decode = |at_text_start| {
            let options = DetokenizerOptions { at_text_start, ..DetokenizerOptions::default() };
            let mut stream = Detokenizer::new(&tokenizer, options);
            ids.iter().map(|&id| stream.push(id).text).collect::<String>() + &stream.finish()
        };
        assert_eq!(decode(true), "  ab");
        assert_eq!(decode(false), "   ab");
    }

    trait ConcatText {
        fn concat_text(&self) -> String;
    }

    impl ConcatText for Vec<DetokenizerOutput> {
        fn concat_text(&self) -> String {
            self.iter().map(|output| output.text.as_str()).collect()
        }
    }

    /// The meaning of stop strings, by trying every end.
    fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = |(_, stop): &(usize, &String)| !stop.is_empty() && text[..end].ends_with(stop.as_str());
            let longest =
                stops.iter().enumerate().filter(ending).max_by_key(|(index, stop)| (stop.len(), usize::MAX - index));
            if let Some((index, stop)) = longest {
                return (&text[..end - stop.len()], Some(index));
            }
        }
        (text, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn outputs_are_the_lossy_text_up_to_the_first_stop(
            ids in prop::collection::vec(prop_oneof![
                3 => (0usize..8).prop_map(|i| u32::from(b"abc a\xc3\xa9\xf0"[i])),
                1 => (0usize..6).prop_map(|i| u32::from(b"\x9f\x99\x82\xff\xe2\x96"[i])),
                1 => 0u32..300,
            ], 0..60),
            stops in prop::collection::vec("[abc é\u{fffd}]{0,4}", 0..4),
            skip_control: bool,
        ) {
            let tokenizer = testing::bytes();
            let options = DetokenizerOptions { skip_control, at_text_start: true, stop_strings: stops.clone(), stops_after: 0 };
            let mut stream = Detokenizer::new(&tokenizer, options);
            let mut streamed = String::new();
            let mut stop = None;
            for &id in &ids {
                let output = stream.push(id);
                prop_assert!(stop.is_none() || output.text.is_empty());
                streamed.push_str(&output.text);
                stop = stop.or(output.stop);
            }
            streamed.push_str(&stream.finish());
            let known: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.token_bytes(id).is_some()).collect();
            let whole = tokenizer.decode(&known, skip_control).unwrap();
            let (expected, expected_stop) = cut(&whole, &stops);
            prop_assert_eq!(&streamed, expected);
            // A stop string may match the very U+FFFD that the end of the stream brings.
            if expected.len() + expected_stop.map_or(0, |index| stops[index].len()) < whole.len() {
                prop_assert_eq!(stop, expected_stop);
            }
            prop_assert!(stops.iter().all(|stop| stop.is_empty() || !streamed.contains(stop.as_str())));
        }
    }
}
