//! How much CPU and memory a guest has.

use crate::quantity::ByteQuantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Virtual CPUs of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Number of virtual CPUs, 1 to 128. Default: 1. Changes while the guest runs, up to the number that the guest was
    /// started for: `max`, or the `count` at that time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 128))]
    pub count: i32,
    /// Number up to which `count` can grow while the guest runs, 1 to 128. Default: `count`. A change takes effect at the
    /// next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub max: Option<i32>,
    /// Share of the host's CPUs, compared with the weights of the other guests, where they want more than there is: 1 to
    /// 65535. Default: 256. Changes while the guest runs.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 65535))]
    pub weight: i32,
    /// Most CPU time that the guest gets, in percent of one physical CPU, even where nobody else wants it: 150 is one and
    /// a half. At most 100 for each virtual CPU, 12800 in all. Default: 0, which is no limit. Changes while the guest runs.
    #[serde(default)]
    #[schemars(range(min = 0, max = 12800))]
    pub cap_percent: i32,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { count: one(), max: None, weight: default_weight(), cap_percent: 0 }
    }
}

fn one() -> i32 {
    1
}

pub(crate) fn default_weight() -> i32 {
    256
}

/// Memory of a guest. It changes while the guest runs where `min` or `max` is given, which says that the guest has a
/// balloon driver; otherwise a change takes effect at the next restart.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Memory the guest has, at least 16Mi and at most 8Ti. Its host reserves this and a small overhead. Changes while the
    /// guest runs between `min` and `max`, where one of them is given.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('8Ti')) <= 0")
        .message("`size` must be a quantity between \"16Mi\" and \"8Ti\""))]
    pub size: ByteQuantity,
    /// Memory that the guest needs at least: `size` cannot be set below it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('8Ti')) <= 0")
        .message("`min` must be a quantity between \"16Mi\" and \"8Ti\""))]
    pub min: Option<ByteQuantity>,
    /// Memory up to which `size` can grow while the guest runs. Default: `size`. A change takes effect at the next
    /// restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0 && quantity(self).compareTo(quantity('8Ti')) <= 0")
        .message("`max` must be a quantity between \"16Mi\" and \"8Ti\""))]
    pub max: Option<ByteQuantity>,
}
