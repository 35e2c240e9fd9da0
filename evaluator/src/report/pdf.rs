//! Figures as PDF: one page of boxes, lines and texts in Helvetica, which every reader has, so that no font is embedded.

use std::fmt::Write;

use super::figure::{Anchor, Colour, Figure, Shape};

/// The mean width of a character of Helvetica, as a share of its size; texts that are not flush left are placed by it.
const CHAR_WIDTH: f64 = 0.51;

/// Writes a figure as a PDF document.
pub(crate) fn document(figure: &Figure) -> Vec<u8> {
    let content = content(figure);
    let (width, height) = (figure.width, figure.height);
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents 5 0 R /Resources << /Font << /F 4 0 R >> >> >>"
        ),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    let mut document = b"%PDF-1.4\n".to_vec();
    let mut offsets = Vec::new();
    for (number, object) in objects.iter().enumerate() {
        offsets.push(document.len());
        document.extend(format!("{} 0 obj\n{object}\nendobj\n", number + 1).bytes());
    }
    offsets.push(document.len());
    document.extend(format!("5 0 obj\n<< /Length {} >>\nstream\n", content.len()).bytes());
    document.extend(content);
    document.extend(b"\nendstream\nendobj\n");
    let start = document.len();
    document.extend(format!("xref\n0 {}\n0000000000 65535 f \n", offsets.len() + 1).bytes());
    for offset in &offsets {
        document.extend(format!("{offset:010} 00000 n \n").bytes());
    }
    let trailer = format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", offsets.len() + 1);
    document.extend(trailer.bytes());
    document
}

fn content(figure: &Figure) -> Vec<u8> {
    let mut content: Vec<u8> = Vec::new();
    // PDF counts from the bottom.
    let up = |y: f64| figure.height - y;
    for shape in &figure.shapes {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = match shape {
            Shape::Box { x, y, width, height, colour } => {
                write!(line, "{} rg {x:.1} {:.1} {width:.1} {height:.1} re f", rgb(*colour), up(y + height))
            }
            Shape::Line { from, to, colour } => {
                write!(line, "{} RG {:.1} {:.1} m {:.1} {:.1} l S", rgb(*colour), from.0, up(from.1), to.0, up(to.1))
            }
            Shape::Text { x, y, size, anchor, text } => {
                let width = text.chars().count() as f64 * CHAR_WIDTH * size;
                let x = match anchor {
                    Anchor::Start => *x,
                    Anchor::Middle => x - width / 2.0,
                    Anchor::End => x - width,
                };
                write!(line, "0.16 0.16 0.16 rg BT /F {size} Tf {x:.1} {:.1} Td (", up(*y))
            }
        };
        content.extend(line.bytes());
        if let Shape::Text { text, .. } = shape {
            content.extend(encoded(text));
            content.extend(b") Tj ET");
        }
        content.push(b'\n');
    }
    content
}

fn rgb(Colour(red, green, blue): Colour) -> String {
    let share = |part: u8| f64::from(part) / 255.0;
    format!("{:.3} {:.3} {:.3}", share(red), share(green), share(blue))
}

/// A text in WinAnsi, brackets escaped; what WinAnsi has not becomes a question mark.
fn encoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in text.chars() {
        match c {
            '(' | ')' | '\\' => bytes.extend([b'\\', c as u8]),
            '…' => bytes.push(0x85),
            ' '..='~' | '\u{a0}'..='\u{ff}' => bytes.push(c as u32 as u8),
            _ => bytes.push(b'?'),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::figure::Bar;

    #[test]
    fn offsets_point_to_objects() {
        let bars = [Bar { label: "a (b) é 漢…".to_owned(), value: 0.5, interval: None, series: 0 }];
        let document = document(&Figure::bars("T", &["x"], &bars, None));
        let text = String::from_utf8_lossy(&document);
        let position = |part: &str| document.windows(part.len()).position(|window| window == part.as_bytes()).unwrap();
        for number in 1..=5 {
            assert!(text.contains(&format!("{:010} 00000 n", position(&format!("{number} 0 obj")))), "{number}");
        }
        assert!(text.contains(&format!("startxref\n{}\n", position("xref"))));
        assert_eq!(encoded("a(é漢…"), [b'a', b'\\', b'(', 0xe9, b'?', 0x85]);
    }
}
