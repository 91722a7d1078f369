//! Which files a sweep is about.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::files::store::Metadata;
use crate::ids::FileId;

/// What a file has to be like. All that is said has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = SweepFilter)]
pub struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_before: Option<i64>,
    /// A model that it was sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Pairs that it has, among others.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Every file of the owner, whatever it is like.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// How many files were named, where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_ids: Option<u64>,
}

impl Filter {
    /// Whether it says nothing that narrows it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a file with this metadata is meant: pairs are compared here, since the databases keep them
    /// as text.
    pub fn wants(&self, metadata: &Metadata) -> bool {
        self.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value))
    }
}

/// How the files of a sweep are found.
#[derive(Clone, Debug)]
pub enum Selection {
    Matching(Filter),
    Files(Vec<FileId>),
}

impl Selection {
    /// As it is stored and shown.
    pub fn filter(&self) -> Filter {
        match self {
            Self::Matching(filter) => filter.clone(),
            Self::Files(files) => {
                Filter { file_ids: Some(files.len() as u64), ..Filter::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_back_and_knows_whether_it_narrows() {
        let filter = Filter { purpose: Some("batch".to_owned()), ..Filter::default() };
        let text = serde_json::to_string(&filter).unwrap();
        assert_eq!(text, r#"{"purpose":"batch"}"#);
        assert_eq!(serde_json::from_str::<Filter>(&text).unwrap(), filter);
        assert!(!filter.is_empty() && Filter::default().is_empty());
    }

    #[test]
    fn every_pair_has_to_agree() {
        let pairs = |pairs: &[(&str, &str)]| -> Metadata {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let filter =
            Filter { metadata: pairs(&[("team", "x"), ("run", "1")]), ..Filter::default() };
        assert!(filter.wants(&pairs(&[("team", "x"), ("run", "1"), ("more", "y")])));
        assert!(!filter.wants(&pairs(&[("team", "x")])));
        assert!(!filter.wants(&pairs(&[("team", "x"), ("run", "2")])));
    }
}
