//! Files made up at random that know, without parsing, what they look like when rewritten.

use proptest::{collection::vec, prelude::*, sample::select};

/// A JSON value with the whitespace and the spelling it has in the file.
#[derive(Clone, Debug)]
pub(super) enum Json {
    Scalar(String),
    /// Items, each with the whitespace on its two sides; and the inside of an empty one.
    Array(Vec<(&'static str, Json, &'static str)>, &'static str),
    Object(Vec<Member>, &'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    key: Key,
    space: [&'static str; 4],
    value: Json,
}

#[derive(Clone, Debug)]
struct Key {
    means: &'static str,
    spelled: &'static str,
}

impl Json {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Scalar(text) => text.clone(),
            Self::Array(items, inside) => {
                let items: Vec<_> = items
                    .iter()
                    .map(|(before, item, after)| format!("{before}{}{after}", item.text()))
                    .collect();
                let inside = if items.is_empty() { inside } else { "" };
                format!("[{inside}{}]", items.join(","))
            }
            Self::Object(members, inside) => object(members, inside, |member| member.value.text()),
        }
    }

    /// The text of a line of which this is the value.
    fn line_text(&self, model: Option<&str>) -> String {
        match (self, model) {
            (Self::Object(members, inside), Some(model)) => {
                object(members, inside, |member| match member.key.means {
                    "body" => member.value.body_text(model),
                    _ => member.value.text(),
                })
            }
            _ => self.text(),
        }
    }

    fn body_text(&self, model: &str) -> String {
        let Self::Object(members, inside) = self else { return self.text() };
        let model = serde_json::to_string(model).unwrap();
        if members.iter().any(|member| member.key.means == "model") {
            return object(members, inside, |member| match member.key.means {
                "model" => model.clone(),
                _ => member.value.text(),
            });
        }
        let comma = if members.is_empty() { "" } else { "," };
        format!("{{\"model\":{model}{comma}{}", &self.text()[1..])
    }
}

fn object(members: &[Member], inside: &str, value: impl Fn(&Member) -> String) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|member| {
            let [a, b, c, d] = member.space;
            format!("{a}\"{}\"{b}:{c}{}{d}", member.key.spelled, value(member))
        })
        .collect();
    let inside = if members.is_empty() { inside } else { "" };
    format!("{{{inside}{}}}", members.join(","))
}

fn space() -> impl Strategy<Value = &'static str> {
    select(vec!["", "", "", "", " ", "\t", "\r", " \r \t"])
}

fn key() -> impl Strategy<Value = Key> {
    select(vec![
        ("body", "body"),
        ("body", "body"),
        ("body", r"\u0062ody"),
        ("model", "model"),
        ("model", "model"),
        ("model", r"mod\u0065l"),
        ("model", r"\u006d\u006F\u0064\u0065\u006C"),
        ("", "Model"),
        ("", "mode"),
        ("", "models"),
        ("", r"model\u0000"),
        ("", r"model\\"),
        ("", r"mod\\u0065l"),
        ("", "modél"),
        ("", "bodybodybodybody"),
        ("", "custom_id"),
        ("", ""),
    ])
    .prop_map(|(means, spelled)| Key { means, spelled })
}

fn scalar() -> impl Strategy<Value = Json> {
    prop_oneof![
        select(vec![
            "null", "true", "false", "0", "-0.0", "12", "1e5", "-7.25E-3", "9e999", r#""""#
        ])
        .prop_map(str::to_owned),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        select(vec![
            r#""\"\\\/\b\f\n\r\t""#,
            r#""\u00e9\uD83D\uDE00""#,
            r#""\ud800""#,
            r#""\udc00\ud800x""#,
            r#""}],{\"model\":1}""#,
            r#""天地玄黃""#,
            r#""a longer text, as the prompts of real requests are: more than one word at a time""#,
        ])
        .prop_map(str::to_owned),
    ]
    .prop_map(Json::Scalar)
}

fn member(value: impl Strategy<Value = Json>) -> impl Strategy<Value = Member> {
    (key(), [space(), space(), space(), space()], value).prop_map(|(key, space, value)| Member {
        key,
        space,
        value,
    })
}

pub(super) fn json() -> impl Strategy<Value = Json> {
    scalar().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (vec((space(), inner.clone(), space()), 0..4), space())
                .prop_map(|(items, inside)| Json::Array(items, inside)),
            (vec(member(inner), 0..5), space())
                .prop_map(|(members, inside)| Json::Object(members, inside)),
        ]
    })
}

/// A value that is often an object with a `body` object, which the plain ones seldom are.
fn line() -> impl Strategy<Value = Json> {
    let object = (vec(member(json()), 0..4), space())
        .prop_map(|(members, inside)| Json::Object(members, inside));
    let request = (vec(member(prop_oneof![object, json()]), 0..5), space())
        .prop_map(|(members, inside)| Json::Object(members, inside));
    prop_oneof![4 => request, 1 => json()]
}

pub(super) fn broken_line() -> impl Strategy<Value = String> {
    (line(), select(vec!["}", "]", "\"", ",", "x", "\\", "{}"]))
        .prop_map(|(json, junk)| json.text() + junk)
}

/// A whole file.
#[derive(Clone, Debug)]
pub(super) struct Document {
    starts_with_mark: bool,
    lines: Vec<(&'static str, Line, &'static str)>,
    end: &'static str,
}

#[derive(Clone, Debug)]
enum Line {
    Blank,
    Json(Json),
    Broken(String),
}

impl Document {
    /// As it is, or as it is for a model.
    pub(super) fn text(&self, model: Option<&str>) -> String {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(before, line, after)| match line {
                Line::Blank => format!("{before}{after}"),
                Line::Json(json) => format!("{before}{}{after}", json.line_text(model)),
                Line::Broken(text) => format!("{before}{text}{after}"),
            })
            .collect();
        let mark = if self.starts_with_mark { "\u{feff}" } else { "" };
        format!("{mark}{}{}", lines.join("\n"), self.end)
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines.iter().filter(|(_, line, _)| !matches!(line, Line::Blank)).count() as u64
    }
}

pub(super) fn document() -> impl Strategy<Value = Document> {
    let line = prop_oneof![
        6 => line().prop_map(Line::Json),
        1 => broken_line().prop_map(Line::Broken),
        1 => Just(Line::Blank),
    ];
    (any::<bool>(), vec((space(), line, space()), 0..6), select(vec!["", "\n", "\r\n", "\n\n"]))
        .prop_map(|(starts_with_mark, lines, end)| Document { starts_with_mark, lines, end })
}
