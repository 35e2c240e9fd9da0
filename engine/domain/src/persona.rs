//! The persona: for whom an answer is meant.

use crate::Invalid;

/// One or a few sentences about the user, such as "The user is a novice cook and prefers short steps."
///
/// Never blank, at most [`Persona::BYTES_MAX`] bytes, outer white space removed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Persona(String);

impl Persona {
    /// The longest persona, in bytes. The paper's personas are one sentence; this leaves room for a page.
    pub const BYTES_MAX: usize = 16 * 1024;

    /// Checks a text.
    ///
    /// **Errors**: a blank or too long text, as field `persona`.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
        let text = text.as_ref().trim();
        if text.is_empty() {
            return Err(Invalid::new("persona", "is blank, must have text"));
        }
        if text.len() > Self::BYTES_MAX {
            return Err(Invalid::new("persona", format!("has {} bytes, at most {}", text.len(), Self::BYTES_MAX)));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the persona in the first person, for models that were trained without a persona line.
    ///
    /// **Source**: paper section 4; "The user is" becomes "I am".
    pub fn first_person(&self) -> String {
        self.0.replace("The user is", "I am").replace("the user is", "I am")
    }
}

/// Hides the text: personas are not logged.
impl std::fmt::Debug for Persona {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Persona({} bytes)", self.0.len())
    }
}

/// The name under which a server keeps a persona. 1 to 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersonaId(String);

impl PersonaId {
    /// The longest id, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks a text.
    ///
    /// **Errors**: an empty or too long text, as field `persona.id`.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            return Err(Invalid::new(
                "persona.id",
                format!("has {} bytes, must have 1..={}", text.len(), Self::BYTES_MAX),
            ));
        }
        Ok(Self(text))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the persona of a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PersonaSource {
    /// No persona.
    #[default]
    None,
    /// The one persona that the server is configured with.
    System,
    /// The persona itself.
    Text(Persona),
    /// A persona that the server keeps under this name.
    Id(PersonaId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persona_is_trimmed_and_never_blank() {
        assert_eq!(Persona::new("  The user is kind.\n").unwrap().as_str(), "The user is kind.");
        assert_eq!(Persona::new(" \n").unwrap_err().field, "persona");
        assert!(Persona::new("x".repeat(Persona::BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn the_first_person_speaks_of_i() {
        assert_eq!(Persona::new("The user is shy.").unwrap().first_person(), "I am shy.");
    }

    #[test]
    fn debug_hides_the_text() {
        assert_eq!(format!("{:?}", Persona::new("secret").unwrap()), "Persona(6 bytes)");
    }
}
