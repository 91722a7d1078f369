//! How it is known that a copy is gone from its provider.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// The end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The provider deleted it.
    Deleted,
    /// The provider did not know it any more.
    AlreadyGone,
    /// The outcome of its upload was unknown, and the provider's list does not show it.
    NotListed,
    /// It has never taken effect there: nothing was sent, or what was sent was refused or called off.
    NeverThere,
}

/// What a provider answered to a delete, kept with the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    pub proof: Proof,
    /// Of the provider's answer to the delete, if there was one.
    #[schema(required = true)]
    pub http_status: Option<u16>,
    /// Whether the provider was asked for the copy afterwards, and does not have it.
    pub is_verified: bool,
}

impl Receipt {
    pub const NEVER_THERE: Self =
        Self { proof: Proof::NeverThere, http_status: None, is_verified: false };
}
