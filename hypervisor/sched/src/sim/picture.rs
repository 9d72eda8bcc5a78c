//! Timelines for people.

use core::fmt::Write;
use std::string::String;
use std::vec::Vec;

use super::simulation::Simulation;
use super::trace::Segment;
use crate::Ticks;

/// A letter per vCPU, in order; more than those share the last.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#";

/// A row per CPU, a column per `step`, a letter per vCPU, `.` where nobody runs at the beginning of the column.
pub fn ascii(simulation: &mut Simulation, from: Ticks, to: Ticks, step: Ticks) -> String {
    let cpus = simulation.machine().cpus();
    let step = step.max(1);
    let columns = to.saturating_sub(from).div_ceil(step) as usize;
    let mut rows = std::vec![std::vec![b'.'; columns]; cpus.len() as usize];
    for segment in simulation.timeline() {
        let Some(row) = rows.get_mut(segment.cpu.0 as usize) else {
            continue;
        };
        // Columns whose beginning lies in the piece.
        let first = segment.from.saturating_sub(from).div_ceil(step) as usize;
        let last = segment.to.saturating_sub(from).div_ceil(step) as usize;
        let letter = LETTERS
            .get(segment.vcpu.0 as usize)
            .or(LETTERS.last())
            .copied()
            .unwrap_or(b'#');
        for column in row.iter_mut().take(last).skip(first) {
            *column = letter;
        }
    }
    let mut text = String::new();
    for (cpu, row) in cpus.iter().zip(rows) {
        let row: String = row.into_iter().map(char::from).collect();
        let _ = writeln!(text, "cpu{:<2} {row}", cpu.0);
    }
    text
}

/// One simulation in a picture.
#[derive(Clone, Debug)]
pub struct Panel {
    title: String,
    cpus: u32,
    segments: Vec<Segment>,
    /// Of each vCPU.
    groups: Vec<Option<usize>>,
    names: Vec<String>,
}

impl Panel {
    /// A panel of a recorded simulation.
    pub fn new(title: &str, simulation: &mut Simulation) -> Panel {
        let segments = simulation.timeline().to_vec();
        let scenario = simulation.scenario();
        Panel {
            title: title.into(),
            cpus: simulation.machine().cpus().len(),
            segments,
            groups: scenario
                .vcpus
                .iter()
                .map(|vcpu| vcpu.group.map(|group| group.0 as usize))
                .collect(),
            names: scenario
                .groups
                .iter()
                .map(|group| group.name.clone())
                .collect(),
        }
    }
}

/// Of groups; told apart by people who see no red or green, too (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
];
const LONE: &str = "#888888";
const WIDTH: u64 = 1000;
const LEFT: u64 = 60;
const ROW: u64 = 24;

/// Text in XML.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // No other control characters are allowed in XML 1.0.
            control if control.is_control() && !matches!(control, '\n' | '\t' | '\r') => {
                out.push('\u{fffd}');
            }
            other => out.push(other),
        }
    }
    out
}

/// A picture of the time from `from` to `to`, panels one below the other: a row per CPU, a colour per group, pale where a vCPU
/// only spins, the axis in milliseconds at `ticks_per_ms`.
#[must_use]
pub fn svg(panels: &[Panel], from: Ticks, to: Ticks, ticks_per_ms: u64) -> String {
    let span = to.saturating_sub(from).max(1);
    let x = |time: Ticks| {
        LEFT as f64 + (time.clamp(from, to) - from) as f64 * WIDTH as f64 / span as f64
    };
    let height: u64 = panels
        .iter()
        .map(|panel| u64::from(panel.cpus) * ROW + 92)
        .sum();
    let (width, mut top) = (LEFT + WIDTH + 20, 0);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    for panel in panels {
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
            top + 18,
            escape(&panel.title)
        );
        let mut along = LEFT;
        let lone = panel.groups.contains(&None).then_some((None, "no group"));
        let names = panel.names.iter().enumerate();
        let names = names.map(|(index, name)| (Some(index), name.as_str()));
        for (index, name) in names.chain(lone) {
            let colour = colour(index);
            let _ = writeln!(
                out,
                "<rect x=\"{along}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                top + 26,
                along + 17,
                top + 36,
                escape(name)
            );
            along += 40 + 8 * name.chars().count() as u64;
        }
        let rows = top + 46;
        for cpu in 0..panel.cpus {
            let y = rows + u64::from(cpu) * ROW;
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">CPU {cpu}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#f2f2f2\"/>",
                LEFT - 8,
                y + 15,
                ROW - 4
            );
        }
        for segment in &panel.segments {
            if segment.to <= from || segment.from >= to {
                continue;
            }
            let group = panel.groups.get(segment.vcpu.0 as usize).copied().flatten();
            let opacity = if segment.spinning {
                " fill-opacity=\"0.3\""
            } else {
                ""
            };
            let _ = writeln!(
                out,
                "<rect x=\"{:.2}\" y=\"{}\" width=\"{:.2}\" height=\"{}\" fill=\"{}\"{opacity}/>",
                x(segment.from),
                rows + u64::from(segment.cpu.0) * ROW,
                x(segment.to) - x(segment.from),
                ROW - 4,
                colour(group)
            );
        }
        let bottom = rows + u64::from(panel.cpus) * ROW;
        axis(&mut out, bottom, from, to, ticks_per_ms.max(1), x);
        top = bottom + 46;
    }
    out.push_str("</svg>\n");
    out
}

fn colour(group: Option<usize>) -> &'static str {
    group
        .and_then(|group| COLOURS.get(group % COLOURS.len()))
        .copied()
        .unwrap_or(LONE)
}

/// About ten marks at round numbers of milliseconds.
fn axis(
    out: &mut String,
    y: u64,
    from: Ticks,
    to: Ticks,
    ticks_per_ms: u64,
    x: impl Fn(Ticks) -> f64,
) {
    let span_ms = (to.saturating_sub(from) / ticks_per_ms).max(1);
    let mut step = 1;
    for factor in [2, 5, 10].iter().cycle().take(30) {
        if span_ms / step <= 12 {
            break;
        }
        // 1, 2, 5, 10, 20, 50 and so on.
        let decade = 10_u64.pow(step.ilog10());
        step = decade * factor;
    }
    let mut mark = (from / ticks_per_ms).next_multiple_of(step);
    while mark * ticks_per_ms <= to {
        let at = x(mark * ticks_per_ms);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.2}\" y1=\"{y}\" x2=\"{at:.2}\" y2=\"{}\" stroke=\"#000000\"/>\
             <text x=\"{at:.2}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>",
            y + 4,
            y + 17
        );
        mark += step;
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">ms</text>",
        LEFT + WIDTH,
        y + 32
    );
}
