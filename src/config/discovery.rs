//! The configuration of a start without a file: the defaults, and the providers whose usual key variables are set.

use super::{
    ProviderKind,
    environment::{Override, Variables},
    problem::Segment,
};

/// What stands in for the file, and what to tell the operator about it.
pub(super) struct Discovered {
    pub(super) document: String,
    pub(super) found: Vec<String>,
}

/// What messages call the document that stands in for a file.
pub(super) const NAME: &str = "built-in defaults";

/// What to do next where there is neither a file nor a key.
pub(super) const NO_PROVIDER: &str = "no provider is configured: set OPENAI_API_KEY, or write longshore.toml (`longshore config example > longshore.toml`), or try `longshore demo`";

/// The keys that have variables of their own count without a file too.
const KEYS: &str = r#"
[auth]
admin_key = "${LONGSHORE_ADMIN_KEY:-}"
encryption_key = "${LONGSHORE_ENCRYPTION_KEY:-}"
"#;

const OPENAI: &str = r#"
[[providers]]
name = "openai"
kind = "openai"
api_key = "${OPENAI_API_KEY}"
webhook_secret = "${OPENAI_WEBHOOK_SECRET:-}"
"#;

/// What can be asked of OpenAI cannot be found out without a call, so these are named.
const OPENAI_MODELS: [&str; 6] =
    ["gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-5", "gpt-5-mini"];

/// The usual variables of the kinds that have one.
const USUAL_KEYS: [(ProviderKind, &str); 4] = [
    (ProviderKind::OpenAi, "OPENAI_API_KEY"),
    (ProviderKind::Anthropic, "ANTHROPIC_API_KEY"),
    (ProviderKind::Gemini, "GEMINI_API_KEY"),
    (ProviderKind::Mistral, "MISTRAL_API_KEY"),
];

/// Looks for providers. One that the environment configures in full is not mixed with what is found.
pub(super) fn discover(variables: &Variables, overrides: &[Override<'_>]) -> Discovered {
    let mut document = KEYS.to_owned();
    let mut found = Vec::new();
    let providers_are_named = overrides.iter().any(|given| names_providers(&given.path.0));
    let models_are_named = overrides.iter().any(|given| given.path.is_in_section("models"));
    for (kind, variable) in USUAL_KEYS {
        if variables.get(variable).is_none_or(String::is_empty) {
            continue;
        }
        if providers_are_named {
            found.push(format!(
                "{variable} is set, and left alone: LONGSHORE__PROVIDERS configures the providers"
            ));
        } else if kind.is_supported() {
            document.push_str(OPENAI);
            let models = if models_are_named {
                "the models of LONGSHORE__MODELS".to_owned()
            } else {
                for model in OPENAI_MODELS {
                    document.push_str(&format!(
                        "[[models]]\nname = \"{model}\"\nprovider = \"openai\"\n"
                    ));
                }
                format!("the models {}", OPENAI_MODELS.join(", "))
            };
            found.push(format!("{variable} is set: the provider `{kind}`, with {models}"));
        } else {
            found.push(format!("{variable} is set, but the kind `{kind}` is not supported yet"));
        }
    }
    Discovered { document, found }
}

/// Whether `path` gives the providers as a whole, or the first of them a name, rather than a detail of what is found.
fn names_providers(path: &[Segment]) -> bool {
    let key = |segment: &Segment, name: &str| matches!(segment, Segment::Key(key) if key == name);
    match path {
        [section] => key(section, "providers"),
        [section, Segment::Index(0), setting] => key(section, "providers") && key(setting, "name"),
        _ => false,
    }
}
