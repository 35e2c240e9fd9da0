//! `report`: the results of run folders on one self-contained page, with figures as files and tables as CSV and JSON.
//!
//! Place in the flow: the last stage. It reads manifests, summaries and the answers of `generate` runs; it calls no model.

mod figure;
mod findings;
mod pdf;
mod png;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use minijinja::Environment;
use serde_json::{Value, json};

use self::findings::Findings;
use crate::run_folder::write_atomically;

/// Arguments of `report`.
#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Folder to search for run folders, at any depth. May be given repeatedly.
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The page to write. Figures (SVG, PDF, PNG), tables (CSV) and report.json are put in a folder of the same name beside it.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub(crate) out: PathBuf,
    /// Title of the page.
    #[arg(long, value_name = "TEXT", default_value = "Bespoke evaluation")]
    pub(crate) title: String,
    /// Prompts to show side by side, at most.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) examples: usize,
}

const PAGE: &str = include_str!("report/page.html");

/// Runs the stage.
pub(crate) fn report(arguments: &Report) -> Result<()> {
    let findings = Findings::read(&arguments.runs, arguments.examples)?;
    ensure!(!findings.runs.is_empty(), "no run folders below {}", list(&arguments.runs));
    let folder = arguments.out.with_extension("");
    let figures = findings.figures();
    for (name, figure) in &figures {
        write_atomically(&folder.join(format!("{name}.svg")), figure.svg().as_bytes())?;
        write_atomically(&folder.join(format!("{name}.pdf")), &pdf::document(figure))?;
        write_atomically(&folder.join(format!("{name}.png")), &png::document(figure)?)?;
    }
    for (name, table) in findings.tables() {
        write_atomically(&folder.join(format!("{name}.csv")), csv(&table).as_bytes())?;
    }
    let json = json!({"runs": findings.runs, "summaries": findings.summaries});
    write_atomically(&folder.join("report.json"), (serde_json::to_string_pretty(&json)? + "\n").as_bytes())?;
    let figures: Vec<Value> = figures
        .iter()
        .map(|(name, figure)| json!({"name": name, "title": figure.title, "svg": figure.svg()}))
        .collect();
    let page = page(&json!({
        "title": arguments.title,
        "written": jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "figures": figures,
        "tables": findings.tables().iter().map(|(_, table)| json!(table)).collect::<Vec<_>>(),
        "examples": findings.examples,
        "contestants": findings.contestants,
    }))?;
    write_atomically(&arguments.out, page.as_bytes())?;
    eprintln!(
        "report: {} runs on {}, figures and tables in {}",
        findings.runs.len(),
        arguments.out.display(),
        folder.display()
    );
    Ok(())
}

fn page(values: &Value) -> Result<String> {
    let mut environment = Environment::new();
    // The name ends in .html, so that all values are escaped.
    environment.add_template("page.html", PAGE).context("the built-in page is not a template")?;
    let template = environment.get_template("page.html")?;
    template.render(minijinja::value::Serde(values)).context("the page cannot be filled")
}

/// Writes a table as RFC 4180 has it.
fn csv(table: &findings::Table) -> String {
    let cell = |text: &String| {
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
    };
    let lines = std::iter::once(&table.columns).chain(&table.rows);
    lines.map(|row| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n").collect()
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path: &PathBuf| Path::display(path).to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_escapes_what_models_write() {
        let row = json!({"index": 3, "dataset": "d", "prompt": "<script>alert(1)</script>", "answers": [
            {"run": "a", "persona": "The user & co", "response": "<b>", "repetitive": true}]});
        let values = json!({"title": "T", "written": "now", "version": "1", "figures": [], "tables": [
            {"title": "X", "note": "", "columns": ["c"], "rows": [["<i>"]]}], "examples": [row], "contestants": ["a"]});
        let page = page(&values).unwrap();
        assert!(page.contains("&lt;script&gt;alert(1)&lt;&#x2f;script&gt;") && page.contains("&lt;i&gt;"), "{page}");
        assert!(!page.contains("<b>") && !page.contains("http"));
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let table = findings::Table {
            title: String::new(),
            note: String::new(),
            columns: vec!["a".to_owned(), "b".to_owned()],
            rows: vec![vec!["1,5".to_owned(), "say \"x\"".to_owned()]],
        };
        assert_eq!(csv(&table), "a,b\r\n\"1,5\",\"say \"\"x\"\"\"\r\n");
    }
}
