//! Server-sent events: bytes as they arrive from the wire in, the data of whole events out.
//!
//! **Source**: HTML Living Standard, section 9.2.6 "Interpreting an event stream"; of the fields only `data` matters here.

/// The longest event that is buffered; a server that sends more without a blank line is broken.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Cuts a stream into events.
#[derive(Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    after_return: bool,
}

impl SseParser {
    /// Takes the next bytes and hands `visit` the data of every event that they complete.
    ///
    /// **Errors**: an event that is too long.
    pub(crate) fn push(&mut self, bytes: &[u8], mut visit: impl FnMut(&str)) -> anyhow::Result<()> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                // The second half of a line end.
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(&mut visit),
                _ => self.line.push(byte),
            }
            anyhow::ensure!(self.line.len() + self.data.len() <= EVENT_BYTES_MAX, "an event of the server never ends");
        }
        Ok(())
    }

    fn end_line(&mut self, visit: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                visit(&std::mem::take(&mut self.data));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk, |data| events.push(data.to_owned())).unwrap();
        }
        events
    }

    #[test]
    fn an_event_ends_with_a_blank_line() {
        assert_eq!(events(&[b"data: {\"a\":1}\n\ndata: [DONE]\n\n"]), ["{\"a\":1}", "[DONE]"]);
        assert_eq!(events(&[b"data: unfinished\n"]), Vec::<String>::new());
        assert_eq!(events(&[b"\n\n\n"]), Vec::<String>::new());
    }

    #[test]
    fn every_line_end_counts() {
        assert_eq!(events(&[b"data: a\r\n\r\ndata: b\r\rdata: c\n\n"]), ["a", "b", "c"]);
        assert_eq!(events(&[b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n"]), ["a", "b"]);
    }

    #[test]
    fn lines_of_data_join_and_the_rest_is_ignored() {
        assert_eq!(events(&[b": a comment\nevent: x\nid: 3\ndata: one\ndata:two\n\n"]), ["one\ntwo"]);
        assert_eq!(events(&[b"data\n\n"]), [""]);
        assert_eq!(events(&[b"data:  two spaces\n\n"]), [" two spaces"]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let megabyte = vec![b'x'; 1 << 20];
        let failed = (0..20).any(|_| parser.push(&megabyte, |_| {}).is_err());
        assert!(failed);
    }

    proptest! {
        /// Where the wire cuts the bytes makes no difference.
        #[test]
        fn cuts_do_not_matter(text in "(data: [a-zé]{0,4}|[\r\n]|:x){0,20}", cut in any::<prop::sample::Index>()) {
            let bytes = text.as_bytes();
            let cut = cut.index(bytes.len() + 1);
            prop_assert_eq!(events(&[bytes]), events(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
