//! Tests of bridges, on the kernel in a network namespace of their own where the tests run as root.

use super::*;
use std::process::{Command, Stdio};

fn uplink(bridge: &str, create: Option<Option<&str>>) -> UplinkConfig {
    let create = create.map(|interface| CreateBridge { interface: interface.map(str::to_owned) });
    UplinkConfig { bridge: bridge.to_owned(), create }
}

fn network<const N: usize>(uplinks: [(&str, UplinkConfig); N]) -> Result<BridgeNetwork, NetworkError> {
    BridgeNetwork::new(uplinks.into_iter().map(|(name, config)| (name.to_owned(), config)).collect())
}

/// Set in the process that runs in a network namespace of its own.
const INSIDE: &str = "KUBEXEN_TEST_IN_OWN_NETWORK";

/// Runs one test in a network namespace of its own, which goes with it: the test starts itself again, inside. Answers
/// whether this is the inside.
fn in_own_network(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let probe = Command::new("unshare")
        .args(["--net", "ip", "link", "add", "probe", "type", "bridge"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: bridges need root, and the programs unshare and ip");
        return false;
    }
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("network::bridge::tests::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    false
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn an_owned_bridge_is_made_marked_and_repaired() {
    if !in_own_network("an_owned_bridge_is_made_marked_and_repaired") {
        return;
    }
    ip("link add eth1 type veth peer name wire");
    let network = network([
        ("lan", uplink("kxbr-lan", Some(Some("eth1")))),
        ("inner", uplink("kxbr-inner", Some(None))),
    ])
    .unwrap();
    assert!(network.uplinks().await.is_empty());
    for _ in 0..2 {
        network.prepare().await.unwrap();
        assert_eq!(network.uplinks().await, ["inner", "lan"]);
    }
    assert_eq!(network.bridge("lan").await.unwrap(), "kxbr-lan");
    let shown = ip("-details link show kxbr-lan");
    assert!(shown.contains("alias kubexen") && shown.contains("forward_delay 0 "), "{shown}");
    assert!(ip("link show eth1").contains("master kxbr-lan"));

    ip("link set eth1 nomaster");
    ip("link set kxbr-inner down");
    assert!(network.uplinks().await.is_empty());
    network.prepare().await.unwrap();
    assert_eq!(network.uplinks().await, ["inner", "lan"]);
    ip("link delete kxbr-inner");
    network.prepare().await.unwrap();
    assert_eq!(network.uplinks().await, ["inner", "lan"]);
}

#[tokio::test]
async fn a_bridge_of_somebody_else_is_used_and_never_changed() {
    if !in_own_network("a_bridge_of_somebody_else_is_used_and_never_changed") {
        return;
    }
    ip("link add xenbr0 type bridge");
    ip("link add eth1 type veth peer name wire");
    let before = ip("link show xenbr0");
    let used = network([("lan", uplink("xenbr0", None))]).unwrap();
    let claimed = network([("lan", uplink("xenbr0", Some(Some("eth1"))))]).unwrap();
    assert!(matches!(used.prepare().await, Err(NetworkError::Down(_))));
    assert!(matches!(claimed.prepare().await, Err(NetworkError::NotOurs(_))));
    assert_eq!(ip("link show xenbr0"), before);
    ip("link set xenbr0 up");
    used.prepare().await.unwrap();
    assert_eq!(used.uplinks().await, ["lan"]);
    assert!(claimed.uplinks().await.is_empty());
    assert!(!ip("link show eth1").contains("master"));
}

#[tokio::test]
async fn an_interface_that_somebody_uses_is_left_alone() {
    if !in_own_network("an_interface_that_somebody_uses_is_left_alone") {
        return;
    }
    ip("link add eth1 type veth peer name wire");
    ip("address add 192.0.2.7/24 dev eth1");
    ip("link add xenbr0 type bridge");
    ip("link set wire master xenbr0");
    for interface in ["eth1", "wire"] {
        let network = network([("lan", uplink("kxbr-lan", Some(Some(interface))))]).unwrap();
        let prepared = network.prepare().await;
        assert!(matches!(prepared, Err(NetworkError::InterfaceInUse { .. })), "{prepared:?}");
    }
    assert!(!ip("link show eth1").contains("master"));
    assert!(ip("link show wire").contains("master xenbr0"));
}

#[tokio::test]
async fn a_bridge_that_a_killed_agent_left_unmarked_is_finished() {
    if !in_own_network("a_bridge_that_a_killed_agent_left_unmarked_is_finished") {
        return;
    }
    ip(&format!("link add {} type bridge", temporary_name("kxbr-lan")));
    let network = network([("lan", uplink("kxbr-lan", Some(None)))]).unwrap();
    network.prepare().await.unwrap();
    assert_eq!(network.uplinks().await, ["lan"]);
    assert_eq!(ip("-oneline link show type bridge").lines().count(), 1);
}

#[tokio::test]
async fn one_uplink_that_fails_keeps_no_other_from_being_made() {
    if !in_own_network("one_uplink_that_fails_keeps_no_other_from_being_made") {
        return;
    }
    ip("link add eth1 type veth peer name wire");
    let network = network([
        ("a", uplink("kxbr-a", Some(Some("eth9")))),
        ("b", uplink("eth1", None)),
        ("c", uplink("kxbr-c", Some(None))),
    ])
    .unwrap();
    assert!(matches!(network.prepare().await, Err(NetworkError::NoSuchDevice(name)) if name == "eth9"));
    assert!(matches!(network.bridge("b").await, Err(NetworkError::NotABridge(_))));
    assert_eq!(network.uplinks().await, ["c"]);
}

#[test]
fn a_configuration_that_nothing_can_follow_is_refused() {
    let own = |bridge| uplink(bridge, Some(None));
    let bad =
        |result: Result<BridgeNetwork, NetworkError>| matches!(result, Err(NetworkError::BadConfig { .. }));
    assert!(!bad(network([
        ("a", own("kxbr-a")),
        ("b", uplink("xenbr0", None)),
        ("c", uplink("xenbr0", None))
    ])));
    assert!(bad(network([("a", own("a-name-that-is-too-long"))])));
    assert!(bad(network([("a", own("br/0"))])));
    assert!(bad(network([("a", uplink("eth1", Some(Some("eth1"))))])));
    assert!(bad(network([("a", own("kxbr")), ("b", own("kxbr"))])));
    assert!(bad(network([("a", own("kxbr")), ("b", uplink("kxbr", None))])));
    assert!(bad(network([("a", uplink("kxbr", None)), ("b", own("kxbr"))])));
    assert!(bad(network([
        ("a", uplink("kxbr-a", Some(Some("eth1")))),
        ("b", uplink("kxbr-b", Some(Some("eth1"))))
    ])));
}

#[test]
fn the_temporary_name_of_a_bridge_is_its_own() {
    assert_eq!(temporary_name("kxbr-lan").len(), 13);
    assert_ne!(temporary_name("kxbr-lan"), temporary_name("kxbr-wan"));
}

#[tokio::test]
async fn a_switch_learns_at_once_where_a_guest_is() {
    if !in_own_network("a_switch_learns_at_once_where_a_guest_is") {
        return;
    }
    ip("link add eth1 type veth peer name wire");
    ip("link add switch type bridge");
    ip("link set wire master switch up");
    ip("link set switch up");
    let network = network([("lan", uplink("kxbr-lan", Some(Some("eth1"))))]).unwrap();
    network.prepare().await.unwrap();
    network.announce("kxbr-lan", "00:16:3e:12:34:56").await.unwrap();
    let learnt = || {
        let output = Command::new("bridge").args(["fdb", "show", "br", "switch"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("00:16:3e:12:34:56 dev wire")
    };
    // The bridges' ports carry frames as soon as the kernel has seen both ends of the wire up.
    timeout(CALL_LIMIT, async {
        while !learnt() {
            network.announce("kxbr-lan", "00:16:3e:12:34:56").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert!(network.announce("nowhere", "00:16:3e:12:34:56").await.is_err());
}
