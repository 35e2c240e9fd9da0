//! Figures as PNG at twice their size: boxes and straight lines by hand, texts from a pre-rasterized font, so that no font is
//! looked for on the machine.

use anyhow::{Context, Result};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::figure::{Anchor, Colour, Figure, Shape};

/// Pixels of a point.
const SCALE: f64 = 2.0;
/// From here on a text is set in the larger height.
const TITLE_SIZE: f64 = 14.0;
const INK: Colour = Colour(40, 40, 40);
const PAPER: u8 = 255;
/// Where the base line of a raster is, as a share of its height from the top.
const BASE_LINE: f64 = 0.78;

/// Writes a figure as a PNG file.
///
/// **Errors**: none that a figure can cause.
pub(crate) fn document(figure: &Figure) -> Result<Vec<u8>> {
    let mut canvas = Canvas::new(pixels(figure.width), pixels(figure.height));
    for shape in &figure.shapes {
        match shape {
            Shape::Box { x, y, width, height, colour } => canvas.block([*x, *y, x + width, y + height], *colour),
            Shape::Line { from, to, colour } => {
                // Lines of figures run along an axis; half a point on each side makes them one point thick.
                let (left, right) = (from.0.min(to.0), from.0.max(to.0));
                let (top, bottom) = (from.1.min(to.1), from.1.max(to.1));
                canvas.block([left - 0.25, top - 0.25, right + 0.25, bottom + 0.25], *colour);
            }
            Shape::Text { x, y, size, anchor, text } => canvas.text((*x, *y), *size, *anchor, text),
        }
    }
    canvas.encode()
}

fn pixels(points: f64) -> usize {
    (points * SCALE).round().max(0.0) as usize
}

/// Rows of red, green and blue.
struct Canvas {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, data: vec![PAPER; width * height * 3] }
    }

    /// Fills the pixels between left, top, right and bottom, at least one wide and high unless the box is empty.
    fn block(&mut self, [left, top, right, bottom]: [f64; 4], colour: Colour) {
        if right <= left || bottom <= top {
            return;
        }
        let (left, top) = (pixels(left), pixels(top));
        let (right, bottom) = (pixels(right).max(left + 1), pixels(bottom).max(top + 1));
        for y in top..bottom {
            for x in left..right {
                self.mix(x, y, colour, u8::MAX);
            }
        }
    }

    fn text(&mut self, (x, y): (f64, f64), size: f64, anchor: Anchor, text: &str) {
        let (height, weight) = if size >= TITLE_SIZE {
            (RasterHeight::Size24, FontWeight::Bold)
        } else {
            (RasterHeight::Size20, FontWeight::Regular)
        };
        let advance = get_raster_width(weight, height);
        let width = text.chars().count() * advance;
        let left = match anchor {
            Anchor::Start => pixels(x),
            Anchor::Middle => pixels(x).saturating_sub(width / 2),
            Anchor::End => pixels(x).saturating_sub(width),
        };
        let top = pixels(y).saturating_sub((height.val() as f64 * BASE_LINE) as usize);
        for (place, c) in text.chars().enumerate() {
            // What the font has not becomes a question mark, but for the end of labels that were cut.
            let c = if c == '…' { '.' } else { c };
            let Some(glyph) = get_raster(c, weight, height).or_else(|| get_raster('?', weight, height)) else {
                continue;
            };
            for (row, shades) in glyph.rows().enumerate() {
                for (column, shade) in shades.iter().enumerate() {
                    self.mix(left + place * advance + column, top + row, INK, *shade);
                }
            }
        }
    }

    /// Lays a colour over a pixel; outside the canvas nothing happens.
    fn mix(&mut self, x: usize, y: usize, Colour(red, green, blue): Colour, shade: u8) {
        if x >= self.width || y >= self.height {
            return;
        }
        let at = (y * self.width + x) * 3;
        for (pixel, part) in self.data[at..at + 3].iter_mut().zip([red, green, blue]) {
            let (shade, full) = (u32::from(shade), u32::from(u8::MAX));
            *pixel = ((u32::from(*pixel) * (full - shade) + u32::from(part) * shade) / full) as u8;
        }
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let (width, height) = (u32::try_from(self.width)?, u32::try_from(self.height)?);
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("the head of a PNG")?;
        writer.write_image_data(&self.data).context("the pixels of a PNG")?;
        writer.finish().context("the end of a PNG")?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_where_the_figure_has_them() {
        let (blue, red) = (Colour(0, 0, 255), Colour(255, 0, 0));
        let figure = Figure {
            title: String::new(),
            width: 40.0,
            height: 20.0,
            shapes: vec![
                Shape::Box { x: 10.0, y: 5.0, width: 10.0, height: 5.0, colour: blue },
                Shape::Line { from: (0.0, 15.0), to: (40.0, 15.0), colour: red },
                Shape::Box { x: 0.0, y: 0.0, width: 0.0, height: 5.0, colour: red },
                Shape::Box { x: 35.0, y: 0.0, width: 99.0, height: 2.0, colour: red },
            ],
        };
        let bytes = document(&figure).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut data).unwrap();
        let at = |x: usize, y: usize| &data[(y * 80 + x) * 3..][..3];
        assert_eq!((reader.info().width, reader.info().height), (80, 40));
        assert_eq!((at(20, 10), at(39, 19), at(40, 19)), (&[0, 0, 255][..], &[0, 0, 255][..], &[255; 3][..]));
        assert_eq!((at(5, 30), at(79, 3), at(0, 3)), (&[255, 0, 0][..], &[255, 0, 0][..], &[255; 3][..]));
    }

    #[test]
    fn texts_are_drawn_at_their_anchor() {
        let dark = |anchor: Anchor| {
            let mut canvas = Canvas::new(200, 60);
            canvas.text((50.0, 20.0), 12.0, anchor, "ab é漢");
            let columns = (0..200).filter(|x| (0..60).any(|y| canvas.data[(y * 200 + x) * 3] < 128));
            let columns: Vec<usize> = columns.collect();
            (columns[0], columns[columns.len() - 1])
        };
        let (start, end, middle) = (dark(Anchor::Start), dark(Anchor::End), dark(Anchor::Middle));
        assert!(start.0 >= 100 && end.1 < 100 && middle.0 < 100 && middle.1 > 100, "{start:?} {end:?} {middle:?}");
    }
}
