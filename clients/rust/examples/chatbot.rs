//! A chatbot in the terminal: a conversation with the engine for one persona.
//!
//! ```sh
//! cargo run -p bespoke-client --example chatbot -- http://127.0.0.1:50051 "The user is a novice cook."
//! ```
//!
//! [`Chatbot`] is what a backend keeps for each conversation: its turns. The engine's prefix cache makes them cheap to send
//! again, and dropping the events of an answer cancels it.

use std::io::{BufRead, Write};

use anyhow::Result;
use bespoke_client::{Client, Event, Generate, Message, Persona, PersonaSource, Prompt, PromptSpec, Request, Role};
use futures::StreamExt;

/// Turns of a conversation that are sent again.
const TURNS_MAX: usize = 20;

/// One conversation.
struct Chatbot {
    client: Client,
    persona: PersonaSource,
    turns: Vec<Message>,
}

impl Chatbot {
    /// Asks, hands on the answer piece by piece, and keeps both.
    async fn answer(&mut self, text: &str, mut hand_on: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut turns = self.turns.clone();
        turns.push(Message { role: Role::User, content: text.to_owned() });
        let mut spec = PromptSpec::new(Prompt::Messages(turns.clone()));
        spec.persona = self.persona.clone();
        let mut events = self.client.generate_stream(&Request::try_from(Generate::new(spec))?).await?;
        let mut said = String::new();
        while let Some(event) = events.next().await {
            if let Event::Delta(delta) = event? {
                hand_on(&delta.text)?;
                said += &delta.text;
            }
        }
        turns.push(Message { role: Role::Assistant, content: said });
        self.turns = turns.split_off(turns.len().saturating_sub(TURNS_MAX));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
    let persona = match arguments.next() {
        Some(text) => PersonaSource::Text(Persona::new(text)?),
        None => PersonaSource::None,
    };
    let mut chatbot = Chatbot { client: Client::connect(address).await?, persona, turns: Vec::new() };
    let mut out = std::io::stdout();
    write!(out, "> ")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let print = |piece: &str| {
            let mut out = std::io::stdout();
            out.write_all(piece.as_bytes())?;
            Ok(out.flush()?)
        };
        // The conversation goes on after an error, such as a full queue.
        if let Err(error) = chatbot.answer(&line?, print).await {
            writeln!(out, "({error})")?;
        }
        write!(out, "\n> ")?;
        out.flush()?;
    }
    Ok(())
}
