//! Figures: bars with intervals and stacked shares, laid out once as plain shapes and written as SVG here, as PDF in `pdf.rs`.

use std::fmt::Write;

/// A figure, laid out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) shapes: Vec<Shape>,
}

/// What figures are made of. Points, from the top left.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Box { x: f64, y: f64, width: f64, height: f64, colour: Colour },
    Line { from: (f64, f64), to: (f64, f64), colour: Colour },
    Text { x: f64, y: f64, size: f64, anchor: Anchor, text: String },
}

/// Red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour(pub(crate) u8, pub(crate) u8, pub(crate) u8);

/// Where a text stands from its point; `y` is its base line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A bar with its interval, as a share of the axis, which goes from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) series: usize,
}

/// A row of shares that add up to 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shares {
    pub(crate) label: String,
    pub(crate) shares: Vec<f64>,
}

/// Blue, ochre, grey-green: told apart without colour vision too, for they differ in lightness.
const SERIES: [Colour; 3] = [Colour(44, 102, 150), Colour(208, 140, 60), Colour(150, 160, 150)];
/// Win, tie, loss.
const OUTCOMES: [Colour; 3] = [Colour(44, 102, 150), Colour(206, 206, 206), Colour(190, 96, 60)];
const INK: Colour = Colour(40, 40, 40);
const RULE: Colour = Colour(215, 215, 215);
const WIDTH: f64 = 760.0;
/// Where the labels end and the axis starts.
const AXIS_X: f64 = 300.0;
const AXIS_WIDTH: f64 = WIDTH - AXIS_X - 60.0;
const ROW_HEIGHT: f64 = 26.0;
const TOP: f64 = 56.0;
const SIZE: f64 = 12.0;
/// Characters of a label that fit before the axis.
const LABEL_CHARS_MAX: usize = 46;

impl Figure {
    /// Lays out bars from 0 to 100 %; `series` names the colours, `chance` is a line to compare with.
    pub(crate) fn bars(title: &str, series: &[&str], bars: &[Bar], chance: Option<f64>) -> Self {
        let mut figure = Self::frame(title, series, &SERIES, bars.len());
        if let Some(chance) = chance {
            let x = AXIS_X + chance * AXIS_WIDTH;
            figure.line((x, TOP), (x, figure.bottom()), INK);
        }
        for (place, bar) in bars.iter().enumerate() {
            let y = TOP + place as f64 * ROW_HEIGHT;
            figure.label(y, &bar.label);
            figure.block(AXIS_X, y, bar.value * AXIS_WIDTH, SERIES[bar.series % SERIES.len()]);
            let middle = y + ROW_HEIGHT / 2.0;
            let mut end = bar.value;
            if let Some((low, high)) = bar.interval {
                let (low_x, high_x) = (AXIS_X + low * AXIS_WIDTH, AXIS_X + high * AXIS_WIDTH);
                figure.line((low_x, middle), (high_x, middle), INK);
                figure.line((low_x, middle - 4.0), (low_x, middle + 4.0), INK);
                figure.line((high_x, middle - 4.0), (high_x, middle + 4.0), INK);
                end = end.max(high);
            }
            let text = format!("{:.1} %", 100.0 * bar.value);
            figure.text(AXIS_X + end * AXIS_WIDTH + 6.0, middle + 4.0, Anchor::Start, &text);
        }
        figure
    }

    /// Lays out rows of shares, such as wins, ties and losses.
    pub(crate) fn shares(title: &str, names: &[&str], rows: &[Shares]) -> Self {
        let mut figure = Self::frame(title, names, &OUTCOMES, rows.len());
        for (place, row) in rows.iter().enumerate() {
            let y = TOP + place as f64 * ROW_HEIGHT;
            figure.label(y, &row.label);
            let mut start = 0.0;
            for (number, share) in row.shares.iter().enumerate() {
                figure.block(AXIS_X + start * AXIS_WIDTH, y, share * AXIS_WIDTH, OUTCOMES[number % OUTCOMES.len()]);
                // A share that is too narrow for its number goes without.
                if *share > 0.08 {
                    let x = AXIS_X + (start + share / 2.0) * AXIS_WIDTH;
                    figure.text(x, y + ROW_HEIGHT / 2.0 + 4.0, Anchor::Middle, &format!("{:.0} %", 100.0 * share));
                }
                start += share;
            }
        }
        figure
    }

    /// Title, legend, grid and axis.
    fn frame(title: &str, names: &[&str], colours: &[Colour; 3], num_rows: usize) -> Self {
        let height = TOP + num_rows as f64 * ROW_HEIGHT + 30.0;
        let mut figure = Self { title: title.to_owned(), width: WIDTH, height, shapes: Vec::new() };
        figure.shapes.push(Shape::Text { x: 8.0, y: 20.0, size: 15.0, anchor: Anchor::Start, text: title.to_owned() });
        let mut x = AXIS_X;
        for (name, colour) in names.iter().zip(colours).filter(|_| names.len() > 1) {
            figure.shapes.push(Shape::Box { x, y: 34.0, width: 11.0, height: 11.0, colour: *colour });
            figure.text(x + 16.0, 44.0, Anchor::Start, name);
            x += 40.0 + 7.0 * name.chars().count() as f64;
        }
        for quarter in 0..=4 {
            let share = f64::from(quarter) / 4.0;
            let x = AXIS_X + share * AXIS_WIDTH;
            figure.line((x, TOP), (x, figure.bottom()), RULE);
            figure.text(x, figure.bottom() + 16.0, Anchor::Middle, &format!("{:.0} %", 100.0 * share));
        }
        figure
    }

    fn bottom(&self) -> f64 {
        self.height - 26.0
    }

    fn label(&mut self, y: f64, label: &str) {
        let short: String = if label.chars().count() > LABEL_CHARS_MAX {
            label.chars().take(LABEL_CHARS_MAX - 1).chain(['…']).collect()
        } else {
            label.to_owned()
        };
        self.text(AXIS_X - 8.0, y + ROW_HEIGHT / 2.0 + 4.0, Anchor::End, &short);
    }

    fn block(&mut self, x: f64, y: f64, width: f64, colour: Colour) {
        let (y, height) = (y + 4.0, ROW_HEIGHT - 8.0);
        self.shapes.push(Shape::Box { x, y, width: width.max(0.0), height, colour });
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Colour) {
        self.shapes.push(Shape::Line { from, to, colour });
    }

    fn text(&mut self, x: f64, y: f64, anchor: Anchor, text: &str) {
        self.shapes.push(Shape::Text { x, y, size: SIZE, anchor, text: text.to_owned() });
    }

    /// Writes the figure as SVG.
    pub(crate) fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut svg = format!(
            "<svg xmlns=\"{NAMESPACE}\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
             font-family=\"system-ui, Helvetica, Arial, sans-serif\"><title>{}</title>",
            escaped(&self.title)
        );
        for shape in &self.shapes {
            // Writing to a string cannot fail.
            let _ = match shape {
                Shape::Box { x, y, width, height, colour } => write!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{}\"/>",
                    hex(*colour)
                ),
                Shape::Line { from, to, colour } => write!(
                    svg,
                    "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{}\"/>",
                    from.0,
                    from.1,
                    to.0,
                    to.1,
                    hex(*colour)
                ),
                Shape::Text { x, y, size, anchor, text } => write!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{}\" fill=\"{}\">{}</text>",
                    anchor.as_str(),
                    hex(INK),
                    escaped(text)
                ),
            };
        }
        svg + "</svg>"
    }
}

/// The name of SVG's vocabulary; nothing is fetched from it.
const NAMESPACE: &str = concat!("http", "://www.w3.org/2000/svg");

impl Anchor {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

fn hex(Colour(red, green, blue): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let bars = [Bar { label: "a <b>".to_owned(), value: 0.5, interval: Some((0.25, 0.75)), series: 0 }];
        let figure = Figure::bars("T", &["x"], &bars, None);
        let width = figure.shapes.iter().find_map(|shape| match shape {
            Shape::Box { width, .. } => Some(*width),
            _ => None,
        });
        assert_eq!(width, Some(AXIS_WIDTH / 2.0));
        let svg = figure.svg();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>") && svg.contains("a &lt;b&gt;") && svg.contains("50.0 %")
        );
    }

    #[test]
    fn shares_fill_the_axis() {
        let figure = Figure::shapes_of_one_row();
        let widths: f64 = figure.iter().sum();
        assert!((widths - AXIS_WIDTH).abs() < 1e-9);
    }

    impl Figure {
        fn shapes_of_one_row() -> Vec<f64> {
            let rows = [Shares { label: "r".to_owned(), shares: vec![0.5, 0.3, 0.2] }];
            let figure = Self::shares("T", &["win", "tie", "loss"], &rows);
            let widths = figure.shapes.iter().filter_map(|shape| match shape {
                Shape::Box { width, height, .. } if *height > 11.0 => Some(*width),
                _ => None,
            });
            widths.collect()
        }
    }
}
