//! Challenges: what an organiser writes down once, and every player's stack is then made from.
//!
//! A [`Challenge`] is valid by construction: [`Draft::check`] is the only way to one, and what it
//! takes can be started. It is described by an image and a port, or by a Pod; both become one
//! [`StackSpec`] when it is written, by the same strict reading of a Pod that all stacks go
//! through, so that nothing is left to be refused when a player presses the button.

mod draft;
mod extra;
mod flag;
mod id;
mod player;
mod policy;

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::port::TargetPorts;
use crate::spec::StackSpec;

pub use draft::{Draft, Fault, Invalid};
pub use extra::{ExtraConfig, FurtherPort};
pub use flag::{Flag, concealed, revealed};
pub use id::{ChallengeId, ChallengeNumber, ChallengeRef, InvalidChallengeId};
pub use player::{MAX_SUBJECT, Player, Refusal, Situation, Subject, admit, extended};
pub use policy::ChallengePolicy;

/// A challenge of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Its number, which some dialects name it by.
    pub number: ChallengeNumber,
    /// What it was written as.
    pub definition: Definition,
    /// What a stack of it is made of.
    pub spec: Arc<StackSpec>,
    /// When it was written first.
    pub created_at: Timestamp,
    /// When something of it last changed.
    pub updated_at: Timestamp,
}

impl Challenge {
    /// Its slug.
    pub fn id(&self) -> &ChallengeId {
        &self.definition.id
    }
}

/// What a challenge was written as. It is stored as JSON, so a field that is added later needs a
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its slug.
    pub id: ChallengeId,
    /// What people call it.
    pub name: String,
    /// How strongly its stacks are isolated.
    pub class: Class,
    /// What its stacks are made from.
    pub source: Source,
    /// What players speak with it.
    pub scheme: Scheme,
    /// How long a stack of it lives; the server's default where absent.
    pub ttl_seconds: Option<u64>,
    /// Further options, as they were written; see [`ExtraConfig`].
    pub extra_config: Option<String>,
    /// Whether it is there for players at all.
    pub enabled: bool,
    /// Whether players may start stacks of it.
    pub stack_enabled: bool,
    /// Whether solving it ends the solver's stack.
    pub destroy_on_solve: bool,
}

impl Definition {
    /// Its flag, where it has one. It was read when the challenge was written, so an error means
    /// that another version of this program has written it.
    pub fn flag(&self) -> Result<Option<Flag>, String> {
        let Some(extra) = &self.extra_config else { return Ok(None) };
        ExtraConfig::read(extra).map(|extra| extra.flag)
    }
}

/// What the stacks of a challenge are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// One container of this image.
    Image {
        /// The image's reference.
        image: String,
        /// The port that it listens on.
        port: u16,
        /// CPU cores.
        cpu_count: u32,
        /// Memory, in units of 2^20 bytes.
        memory_mb: u32,
    },
    /// A Pod, as the provisioner takes it.
    Pod {
        /// The Pod as YAML.
        pod_spec: String,
        /// The ports to publish.
        target_port: TargetPorts,
    },
}

/// How strongly the stacks of a challenge are isolated: the instancer's word for it, which every
/// server can write down, and not every server can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// This server's default.
    #[serde(rename = "docker")]
    Docker,
    /// A Pod with nsjail.
    #[serde(rename = "kctf")]
    Kctf,
    /// A microVM of its own.
    #[serde(rename = "kata-firecracker")]
    KataFirecracker,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Docker, Self::Kctf, Self::KataFirecracker];

    /// The instancer's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kctf => "kctf",
            Self::KataFirecracker => "kata-firecracker",
        }
    }

    /// The runtime class to ask the runtime for; its default where `None`. Nothing falls back from
    /// a stronger one.
    pub fn runtime_class(self) -> Option<String> {
        (self != Self::Docker).then(|| self.as_str().to_owned())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What players speak with a challenge's own port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP: a browser opens it.
    Http,
    /// Anything else over TCP: `nc` opens it.
    Tcp,
}

impl Scheme {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Tcp];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}
