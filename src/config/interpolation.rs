//! `${NAME}` and `${NAME:-default}` in the strings of the file, filled from the environment; `$$` is a `$`.

use super::{
    environment::Variables,
    problem::{KeyPath, Problem, quotable},
    tree::{Content, Node},
};

/// The longest value that can come of it, in bytes: a few repeated names must not fill the memory.
const LONGEST: usize = 64 * 1024;
/// How deep defaults may lie in defaults.
const DEEPEST: usize = 16;

/// Fills the strings of the file at and below `node`. What the environment set stays as it is.
pub(super) fn fill(
    node: &mut Node,
    path: &KeyPath,
    variables: &Variables,
    problems: &mut Vec<Problem>,
) {
    match &mut node.content {
        Content::Text(text) if !text.loose && text.value.contains('$') => {
            match expand(&text.value, variables) {
                Ok(value) => {
                    text.loose = true;
                    text.value = value;
                }
                Err(message) => {
                    node.broken = true;
                    let message = format!("`{path}`: {message}");
                    problems.push(Problem {
                        place: node.place.clone(),
                        path: path.clone(),
                        message,
                    });
                }
            }
        }
        Content::List(list) => {
            for (index, element) in list.iter_mut().enumerate() {
                fill(element, &path.clone().index(index), variables, problems);
            }
        }
        Content::Table(table) => {
            for (key, entry) in table {
                fill(entry, &path.clone().key(key), variables, problems);
            }
        }
        Content::Text(_)
        | Content::Integer(_)
        | Content::Float(_)
        | Content::Boolean(_)
        | Content::Time => {}
    }
}

/// `template` with its variables filled in.
///
/// As in a shell, the default of `${NAME:-default}` counts when the variable is unset or empty, and is filled itself.
/// The error says what is wrong without repeating the text, which may be half a secret.
pub(super) fn expand(template: &str, variables: &Variables) -> Result<String, String> {
    let mut expanded = String::new();
    expand_into(&mut expanded, template, variables, DEEPEST)?;
    Ok(expanded)
}

fn expand_into(
    out: &mut String,
    template: &str,
    variables: &Variables,
    depth: usize,
) -> Result<(), String> {
    let mut rest = template;
    while let Some(dollar) = rest.find('$') {
        append(out, &rest[..dollar])?;
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            append(out, "$")?;
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing_brace(after)
                .ok_or("a `${` has no closing `}`; write `$$` for a plain `$`")?;
            expand_reference(out, &after[..end], variables, depth)?;
            rest = &after[end + 1..];
        } else {
            append(out, "$")?;
        }
    }
    append(out, rest)
}

/// Appends what the inside of `${…}` stands for.
fn expand_reference(
    out: &mut String,
    reference: &str,
    variables: &Variables,
    depth: usize,
) -> Result<(), String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_variable_name(name) {
        return Err(
            "`${…}` takes the name of an environment variable, like `${NAME}` or `${NAME:-default}`; write `$$` for a plain `$`".to_owned(),
        );
    }
    match (variables.get(name), default) {
        (Some(value), None) => append(out, value),
        (Some(value), Some(_)) if !value.is_empty() => append(out, value),
        (_, Some(_)) if depth == 0 => {
            Err(format!("defaults lie in defaults more than {DEEPEST} deep; write fewer"))
        }
        (_, Some(default)) => expand_into(out, default, variables, depth - 1),
        (None, None) => {
            let name = quotable(name);
            Err(format!(
                "the environment variable `{name}` is not set; set it, or write `${{{name}:-}}` to go without"
            ))
        }
    }
}

/// Where the brace closes that was opened just before `text`. Braces inside come in pairs.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(offset);
        }
    }
    None
}

fn is_variable_name(name: &str) -> bool {
    let starts_well =
        name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
    starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn append(out: &mut String, text: &str) -> Result<(), String> {
    if out.len() + text.len() > LONGEST {
        return Err(format!("with its variables filled in it is longer than {LONGEST} bytes"));
    }
    out.push_str(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables() -> Variables {
        [("KEY", "value"), ("EMPTY", ""), ("DOLLAR", "a$b${KEY}"), ("_x1", "under")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn expanded(template: &str) -> String {
        expand(template, &variables()).unwrap()
    }

    #[test]
    fn a_name_becomes_its_value_and_a_default_counts_when_unset_or_empty() {
        assert_eq!(expanded("a ${KEY} b ${_x1}"), "a value b under");
        assert_eq!(expanded("${EMPTY}|${EMPTY:-d}|${GONE:-d}|${GONE:-}|${KEY:-d}"), "|d|d||value");
    }

    #[test]
    fn defaults_may_hold_braces_and_further_variables() {
        assert_eq!(expanded("${GONE:-${ALSO:-${KEY}}}!"), "value!");
        assert_eq!(expanded(r#"${GONE:-{"a": {}}}"#), r#"{"a": {}}"#);
    }

    #[test]
    fn a_doubled_dollar_is_one_and_a_lone_one_stays() {
        assert_eq!(expanded("$$ $${KEY} $5 $"), "$ ${KEY} $5 $");
    }

    #[test]
    fn a_value_from_the_environment_is_not_filled_again() {
        assert_eq!(expanded("${DOLLAR}"), "a$b${KEY}");
    }

    #[test]
    fn errors_say_what_to_write_and_never_repeat_the_text() {
        let error = |template| expand(template, &variables()).unwrap_err();
        assert_eq!(
            error("${GONE}"),
            "the environment variable `GONE` is not set; set it, or write `${GONE:-}` to go without"
        );
        assert_eq!(error("sk-${KEY"), "a `${` has no closing `}`; write `$$` for a plain `$`");
        for template in ["${}", "${1X}", "${secret value}", "${:-x}"] {
            assert_eq!(
                error(template),
                "`${…}` takes the name of an environment variable, like `${NAME}` or `${NAME:-default}`; write `$$` for a plain `$`"
            );
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{}{}", "${GONE:-".repeat(17), "}".repeat(17));
        assert!(expand(&deep, &variables()).unwrap_err().contains("16 deep"));
        let long = [("LONG".to_owned(), "x".repeat(1024))].into();
        assert_eq!(expand(&"${LONG}".repeat(64), &long).unwrap().len(), 65536);
        assert!(expand(&"${LONG}".repeat(65), &long).unwrap_err().contains("longer than 65536"));
    }

    proptest! {
        #[test]
        fn text_with_its_dollars_doubled_comes_out_as_it_was(text in ".*") {
            prop_assert_eq!(expanded(&text.replace('$', "$$")), text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[${}:A-Z-]{0,40}") {
            let _either_is_fine = expand(&text, &variables());
        }
    }
}
