//! Why a reconcile did not get through.

use kubexen_ownership::StoreError;
use kubexen_runtime::write::WriteError;

/// Why a reconcile did not get through. None of these is lasting: the next look tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process does not lead any more; nothing was sent.
    #[error("This controller does not lead any more")]
    Deposed,
    /// A request to the API server failed, or its outcome is not known.
    #[error(transparent)]
    Api(#[from] WriteError),
    /// A call of the pool's store failed, or its outcome is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(WriteError::Api(error))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Api(WriteError::Serialize(error))
    }
}

impl Error {
    /// One word from a fixed set, for metrics and logs.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Deposed => "deposed",
            Self::Store(error) => error.category(),
            Self::Api(WriteError::TimedOut) => "timed_out",
            Self::Api(WriteError::Serialize(_)) => "serialize",
            Self::Api(WriteError::Api(kube::Error::Api(status))) => match status.code {
                401 | 403 => "forbidden",
                404 => "not_found",
                409 => "conflict",
                422 => "invalid",
                429 => "throttled",
                500..=599 => "server",
                _ => "refused",
            },
            Self::Api(WriteError::Api(_)) => "unreachable",
        }
    }

    /// Whether the view was behind: the watch will show what changed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_conflict())
    }

    /// Whether the server answered, and refused: what was asked for certainly did not happen.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api(WriteError::Api(kube::Error::Api(status))) if (400..500).contains(&status.code))
    }
}
