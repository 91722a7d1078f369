//! The table.

use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde_json::Value;
use serde_json::json;

/// All that was measured.
#[derive(Default)]
pub struct Report {
    /// Each with the name of its row.
    pub lines: Vec<(&'static str, Line)>,
    pub left_out: Vec<&'static str>,
    pub failed: Vec<&'static str>,
}

/// A line of the table: what was measured, and its figures.
pub struct Line {
    what: String,
    figures: Vec<Figure>,
    note: Option<String>,
}

struct Figure {
    label: &'static str,
    value: f64,
    unit: Unit,
    bound: Option<Bound>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    PerSecond,
    FilesPerSecond,
    MegabytesPerSecond,
    Milliseconds,
    Seconds,
    Megabytes,
    /// A share, from 0 to 1.
    Percent,
    /// How often something was.
    Times,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Line {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), figures: Vec::new(), note: None }
    }

    /// A figure that nobody set a bound for.
    pub fn figure(mut self, label: &'static str, value: f64, unit: Unit) -> Self {
        self.figures.push(Figure { label, value, unit, bound: None });
        self
    }

    pub fn at_least(mut self, label: &'static str, value: f64, unit: Unit, bound: f64) -> Self {
        self.figures.push(Figure { label, value, unit, bound: Some(Bound::AtLeast(bound)) });
        self
    }

    pub fn at_most(mut self, label: &'static str, value: f64, unit: Unit, bound: f64) -> Self {
        self.figures.push(Figure { label, value, unit, bound: Some(Bound::AtMost(bound)) });
        self
    }

    /// What one has to know to read the figures.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    fn measured(&self) -> String {
        let figures =
            self.figures.iter().map(|figure| figure.labelled(&figure.shown(figure.value)));
        let figures = figures.collect::<Vec<_>>().join(", ");
        match &self.note {
            Some(note) => format!("{figures} ({note})"),
            None => figures,
        }
    }

    fn wanted(&self) -> String {
        let bounds = self.figures.iter().filter_map(|figure| match figure.bound? {
            Bound::AtLeast(value) => Some(figure.labelled(&format!("≥ {}", figure.shown(value)))),
            Bound::AtMost(value) => Some(figure.labelled(&format!("≤ {}", figure.shown(value)))),
        });
        bounds.collect::<Vec<_>>().join(", ")
    }

    fn verdict(&self) -> &'static str {
        let met: Vec<_> = self.figures.iter().filter_map(Figure::is_met).collect();
        match &*met {
            [] => "",
            met if met.iter().all(|is_met| *is_met) => "yes",
            _ => "no",
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.measured())
    }
}

impl Figure {
    fn is_met(&self) -> Option<bool> {
        Some(match self.bound? {
            Bound::AtLeast(bound) => self.value >= bound,
            Bound::AtMost(bound) => self.value <= bound,
        })
    }

    fn shown(&self, value: f64) -> String {
        match self.unit {
            Unit::PerSecond => format!("{}/s", grouped(value)),
            Unit::FilesPerSecond => format!("{} files/s", grouped(value)),
            Unit::MegabytesPerSecond => format!("{} MB/s", grouped(value)),
            Unit::Milliseconds if value < 1.0 => format!("{value:.2} ms"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Seconds => format!("{value:.1} s"),
            Unit::Megabytes => format!("{value:.0} MB"),
            Unit::Percent => format!("{:.2} %", value * 100.0),
            Unit::Times => grouped(value),
        }
    }

    fn labelled(&self, text: &str) -> String {
        if self.label.is_empty() { text.to_owned() } else { format!("{} {text}", self.label) }
    }

    fn to_json(&self) -> Value {
        let (at_least, at_most) = match self.bound {
            Some(Bound::AtLeast(bound)) => (Some(bound), None),
            Some(Bound::AtMost(bound)) => (None, Some(bound)),
            None => (None, None),
        };
        let unit = match self.unit {
            Unit::PerSecond | Unit::FilesPerSecond => "1/s",
            Unit::MegabytesPerSecond => "MB/s",
            Unit::Milliseconds => "ms",
            Unit::Seconds => "s",
            Unit::Megabytes => "MB",
            Unit::Percent => "share",
            Unit::Times => "1",
        };
        json!({"label": self.label, "value": self.value, "unit": unit, "at_least": at_least, "at_most": at_most})
    }
}

/// `1,234` from 100 on, `12.3` below.
fn grouped(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Report {
    pub fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.to_json());
            return;
        }
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(["row", "what", "measured", "wanted", "met"]);
        for (row, line) in &self.lines {
            table.add_row([*row, &line.what, &line.measured(), &line.wanted(), line.verdict()]);
        }
        println!("\n{} cores, which load, providers and server share\n\n{table}", cores());
        if !self.left_out.is_empty() {
            println!("\nleft out, for want of a PostgreSQL server: {}", self.left_out.join(", "));
        }
    }

    fn to_json(&self) -> Value {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(row, line)| {
                let figures: Vec<_> = line.figures.iter().map(Figure::to_json).collect();
                json!({"row": row, "what": line.what, "figures": figures, "note": line.note})
            })
            .collect();
        json!({"cores": cores(), "lines": lines, "left_out": self.left_out, "failed": self.failed})
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
