//! Typed ids. Those we mint are a UUIDv7 inside, sorted by time; how they read is in [`managed`].

pub mod managed;

/// Writes an id type that is a UUIDv7 inside and `prefix` + UUID in text.
macro_rules! minted_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sea_orm::DeriveValueType)]
        pub struct $name(pub uuid::Uuid);

        impl $name {
            /// A new id. Ids minted by one process rise.
            pub fn mint() -> Self {
                Self(uuid::Uuid::now_v7())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_hyphenated())
            }
        }

        impl std::str::FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let uuid = text.strip_prefix($prefix).ok_or(NotAnId)?;
                uuid::Uuid::try_parse(uuid).map(Self).map_err(|_| NotAnId)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(|_| serde::de::Error::custom(concat!("not an id of the form ", $prefix, "…")))
            }
        }
    };
}

/// A text that is not an id of the kind it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id")]
pub struct NotAnId;

minted_id! {
    /// A file, inside this program and its database. Clients see its [`managed::ManagedId`].
    FileId, "file_"
}
minted_id! {
    /// The row that ties a file to one deployment.
    MappingId, "map_"
}
minted_id! {
    /// A durable job, `job_…`.
    JobId, "job_"
}
minted_id! {
    /// A batch. Clients see its managed id.
    BatchId, "batch_"
}
minted_id! {
    /// A batch at one deployment, inside this program and its database.
    RunId, "run_"
}
minted_id! {
    /// A change of state that was announced, `evt_…`.
    EventId, "evt_"
}
minted_id! {
    /// A stored client key, `key_…`: its name, not the key itself.
    ApiKeyId, "key_"
}
minted_id! {
    /// A comparison of a provider's list with the mappings, `rec_…`.
    ReconciliationId, "rec_"
}
minted_id! {
    /// The deletion of many files, `sweep_…`.
    SweepId, "sweep_"
}
minted_id! {
    /// A URL of a client's that events are sent to, `we_…`.
    WebhookEndpointId, "we_"
}
minted_id! {
    /// A process of this installation, `worker_…`: new at each start.
    ProcessId, "worker_"
}
minted_id! {
    /// A provider object that is ours and must go.
    StrayId, "stray_"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_id_reads_back_and_rises() {
        let (first, second) = (JobId::mint(), JobId::mint());
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert!(first.to_string().starts_with("job_"));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        assert_eq!(EventId::mint().to_string().parse::<JobId>(), Err(NotAnId));
        assert_eq!("job_".parse::<JobId>(), Err(NotAnId));
        assert_eq!("".parse::<JobId>(), Err(NotAnId));
    }
}
