//! Requests for embeddings.

use crate::EmbedRequest;

impl EmbedRequest {
    /// Whether the vectors shall have unit length: yes unless it says no.
    pub fn normalizes(&self) -> bool {
        self.normalize.unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_unit_length_by_default() {
        assert!(EmbedRequest::default().normalizes());
        assert!(!EmbedRequest { normalize: Some(false), ..EmbedRequest::default() }.normalizes());
    }
}
