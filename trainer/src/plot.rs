//! The plot of a run: losses above, and for preferences rewards and accuracy below, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::TrainError;
use crate::metrics::{Kind, Record};

const SIZE: (u32, u32) = (960, 420);
/// Points of a smoothed line: each is a mean over so many-th of the steps.
const SMOOTHING: usize = 100;

/// A named line.
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws the records of a run.
///
/// **Errors**: `File` if the picture cannot be drawn, `Io` if it cannot be written.
pub(crate) fn draw(records: &[Record], file: &Path) -> Result<(), TrainError> {
    let losses = [
        line("train loss", smooth(&points(records, Kind::Train, |record| Some(record.means.loss)))),
        line("eval loss", points(records, Kind::Eval, |record| Some(record.means.loss))),
    ];
    let value = |kind, pick: fn(&crate::step::PreferenceMeans) -> f64| {
        points(records, kind, |record| record.means.preference.as_ref().map(pick))
    };
    let rewards = [
        line("train margin", smooth(&value(Kind::Train, |p| p.margin))),
        line("eval margin", value(Kind::Eval, |p| p.margin)),
        line("train accuracy", smooth(&value(Kind::Train, |p| p.accuracy))),
        line("eval accuracy", value(Kind::Eval, |p| p.accuracy)),
    ];
    let has_rewards = rewards.iter().any(|line| !line.points.is_empty());
    let mut text = String::new();
    {
        let size = (SIZE.0, if has_rewards { 2 * SIZE.1 } else { SIZE.1 });
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(|error| error.to_string()).and_then(|()| match has_rewards {
            true => {
                let (above, below) = area.split_vertically(SIZE.1);
                chart(&above, "loss", &losses)?;
                chart(&below, "margin and accuracy", &rewards)
            }
            false => chart(&area, "loss", &losses),
        });
        drawn
            .and_then(|()| area.present().map_err(|error| error.to_string()))
            .map_err(|reason| TrainError::file(file, reason))?;
    }
    crate::files::write_atomic(file, text.as_bytes())
}

fn line(name: &'static str, points: Vec<(f64, f64)>) -> Line {
    Line { name, points }
}

fn points(records: &[Record], kind: Kind, value: impl Fn(&Record) -> Option<f64>) -> Vec<(f64, f64)> {
    let of_kind = records.iter().filter(|record| record.kind == kind);
    of_kind.filter_map(|record| Some((record.step as f64, value(record)?))).filter(|(_, y)| y.is_finite()).collect()
}

fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let len = points.len().div_ceil(SMOOTHING).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let num = chunk.len() as f64;
        (chunk.iter().map(|point| point.0).sum::<f64>() / num, chunk.iter().map(|point| point.1).sum::<f64>() / num)
    };
    points.chunks(len).map(mean).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn chart(area: &Area<'_>, title: &str, lines: &[Line]) -> Result<(), String> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let bounds = |pick: fn(&(f64, f64)) -> f64| {
        let range = all().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        if range.0 > range.1 { (0.0, 1.0) } else { (range.0 - 1e-9, range.1 + (range.1 - range.0) * 0.05 + 1e-9) }
    };
    let (x, y) = (bounds(|point| point.0), bounds(|point| point.1));
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| error.to_string();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .map_err(failed)?;
    chart.configure_mesh().x_desc("step").light_line_style(WHITE).draw().map_err(failed)?;
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
        let color = Palette99::pick(index).to_rgba();
        let series = chart.draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)));
        let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2));
        series.map_err(failed)?.label(line.name).legend(legend);
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).border_style(BLACK).background_style(WHITE.mix(0.8));
    labels.draw().map_err(failed)
}
