//! The rows as a picture: ticks of a round over bytes of a message, both axes logarithmic, a line for each transport.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::bench::result::Row;

const SIZE: (u32, u32) = (900, 560);
/// Colours that people who do not tell red from green tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];

/// Lines in the order of their first row: points of bytes and median ticks.
fn lines(rows: &[Row]) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut order = Vec::new();
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let name = row.name.as_str();
        let (bytes, ticks) = (row.bytes().unwrap_or(0) as f64, row.ticks.p50 as f64);
        if !lines.contains_key(name) {
            order.push(name.to_owned());
        }
        // A logarithm wants more than nothing.
        lines
            .entry(name.to_owned())
            .or_default()
            .push((bytes.max(1.0), ticks.max(1.0)));
    }
    let take = |name: String| lines.remove(&name).map(|points| (name, points));
    order.into_iter().filter_map(take).collect()
}

/// Writes the picture.
pub(super) fn draw(rows: &[Row], file: &Path) -> Result<()> {
    let lines = lines(rows);
    let mut text = String::new();
    render(&lines, &mut text).map_err(|error| anyhow!("cannot draw: {error}"))?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn render(
    lines: &[(String, Vec<(f64, f64)>)],
    text: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let bounds = |of: fn((f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::MAX, f64::min);
        let most = points().map(of).fold(1.0, f64::max);
        (least.min(most) * 0.7)..(most * 1.5)
    };
    let (across, up) = (bounds(|point| point.0), bounds(|point| point.1));
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("One round of ping-pong", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(across.log_scale(), up.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("bytes of a message, each way")
        .y_desc("ticks (median)")
        .x_label_formatter(&|bytes| format!("{bytes:.0}"))
        .y_label_formatter(&|ticks| format!("{ticks:.0}"))
        .light_line_style(RGBColor(235, 235, 235))
        .draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
        let dots = points
            .iter()
            .map(|point| Circle::new(*point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::result::testing;
    use serde_json::json;

    #[test]
    fn each_transport_has_its_line_and_name() {
        let row = |name: &str, bytes: u64, ticks: u64| {
            let mut row = testing::row(name, ticks);
            row.more.insert("bytes".to_owned(), json!(bytes));
            row
        };
        let rows = [row("b", 8, 100), row("b", 64, 0), row("a", 8, 5)];
        let lines = lines(&rows);
        assert_eq!(lines[0], ("b".to_owned(), vec![(8.0, 100.0), (64.0, 1.0)]));
        assert_eq!(lines[1].0, "a");
        let mut text = String::new();
        render(&lines, &mut text).expect("is drawn");
        assert!(text.contains("<svg") && text.matches("<circle").count() == 3);
    }

    #[test]
    fn nothing_is_drawn_of_nothing_without_a_panic() {
        let mut text = String::new();
        render(&[], &mut text).expect("is drawn");
    }
}
