//! `[[models]]`: the names clients write, and which model of which provider each stands for.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::name;

/// One deployment: a model at a provider under a name of ours. A name that several share means all of them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "ModelEntry")]
pub struct Model {
    /// What clients write in `target_model_names`.
    pub name: String,
    /// The name of a configured provider.
    pub provider: String,
    /// The provider's own name for it.
    pub model: String,
    /// The deployment id, where it is not left to [`Self::deployment_id`].
    pub id: Option<String>,
}

impl Model {
    /// The id by which the deployment is stored: `id`, or else a hash that changes only with what it is made of.
    /// No two models of a configuration have the same.
    pub fn deployment_id(&self) -> String {
        /// Half of what UUIDs have; a handful of deployments need no more.
        const BYTES: usize = 8;

        if let Some(id) = &self.id {
            return id.clone();
        }
        // None of the three can hold the separator, so that different ones never run into the same text.
        let digest = Sha256::digest(format!("{}\0{}\0{}", self.name, self.provider, self.model));
        format!("dep_{}", HEXLOWER.encode(&digest[..BYTES]))
    }
}

/// A model as it is written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelEntry {
    #[serde(deserialize_with = "name::plain")]
    name: String,
    provider: String,
    #[serde(default, deserialize_with = "name::optional")]
    model: Option<String>,
    #[serde(default, deserialize_with = "name::optional")]
    id: Option<String>,
}

impl From<ModelEntry> for Model {
    fn from(entry: ModelEntry) -> Self {
        let ModelEntry { name, provider, model, id } = entry;
        Self { model: model.unwrap_or_else(|| name.clone()), name, provider, id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, provider: &str, model: &str) -> Model {
        Model { name: name.into(), provider: provider.into(), model: model.into(), id: None }
    }

    #[test]
    fn a_deployment_id_never_changes_while_its_model_does_not() {
        let id = model("gpt-4o-mini", "openai", "gpt-4o-mini-2024-07-18").deployment_id();
        assert_eq!(id, "dep_633097f299d7777e");
    }

    #[test]
    fn different_deployments_have_different_ids() {
        let ids = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "b", "d")].map(
            |(name, provider, at_provider)| model(name, provider, at_provider).deployment_id(),
        );
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn a_given_id_is_the_id() {
        let given = Model { id: Some("mine".into()), ..model("a", "b", "c") };
        assert_eq!(given.deployment_id(), "mine");
    }
}
