//! The store against a real etcd: the conformance script, and what a network and a process can do to it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod history;
mod proxy;
mod server;
mod spec;
mod tls;
mod transitions;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{Client, Txn, TxnOp};
use kubexen_ownership::conformance::{self, Subject, host, vm};
use kubexen_ownership::liveness::{Liveness, Timing};
use kubexen_ownership::lock::{self, EtcdLocks, LockError, LockName, Locks};
use kubexen_ownership::{
    Abort, Commit, EtcdConfig, EtcdStore, HostBoot, HostName, OwnershipStore, Release, Start, StoreError,
    TlsFiles, Token, VmUid,
};
use proxy::Proxy;
use server::{Etcd, ReservedPort};
use tls::Authority;
use tokio::task::JoinSet;

/// The time limit of requests: enough for an etcd that shares two cores with the other tests, and not much more,
/// because some tests run into it.
const LIMIT: Duration = Duration::from_secs(1);

fn config(endpoints: &[String]) -> EtcdConfig {
    EtcdConfig { request_timeout: LIMIT, ..EtcdConfig::new(endpoints.to_vec()) }
}

fn store(endpoints: &[String]) -> EtcdStore {
    EtcdStore::new(config(endpoints))
}

fn token_of(start: Start) -> Token {
    match start {
        Start::Acquired(token) | Start::AlreadyMine(token) => token,
        Start::Refused(owner) => panic!("refused in favour of {owner:?}"),
    }
}

/// Repeats `call` while etcd cannot be asked, as every caller does.
async fn until_answered<T, R>(call: impl Fn() -> R) -> T
where
    R: Future<Output = Result<T, StoreError>>,
{
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Unknown { .. })) => {
                assert!(Instant::now() < deadline, "no answer within 30 s: {error:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Releases what `me` owns. After an unknown result the next attempt may find it done already.
async fn release(store: &EtcdStore, vm: VmUid, me: &HostBoot, token: Token) {
    let answer = until_answered(|| store.release(vm, me, token)).await;
    assert!(matches!(answer, Release::Released | Release::NotOwner(None)), "{answer:?}");
    assert_eq!(until_answered(|| store.owner(vm)).await, None);
}

/// Three members. A client whose answer is lost goes on at another one.
struct RealEtcd {
    proxy: Proxy,
    members: [Etcd; 3],
}

impl RealEtcd {
    async fn start() -> Self {
        let members = Etcd::start_three().await;
        Self { proxy: Proxy::start(members.each_ref().map(Etcd::address)).await, members }
    }
}

#[async_trait]
impl Subject for RealEtcd {
    fn client(&self) -> Arc<dyn OwnershipStore> {
        Arc::new(store(self.proxy.endpoints()))
    }

    fn liveness(&self) -> Arc<dyn Liveness> {
        Arc::new(store(self.proxy.endpoints()))
    }

    async fn lose_answers(&self, writes: u32) {
        assert_eq!(self.proxy.answers_left_to_lose(), 0, "an answer that was to be lost was not");
        self.proxy.lose_answers(writes);
    }

    async fn overwrite(&self, vm: VmUid, value: &[u8]) {
        let mut client = Client::connect([self.members[0].endpoint()], None).await.unwrap();
        client.put(format!("/kubexen/owners/{vm}"), value, None).await.unwrap();
    }
}

#[tokio::test]
async fn three_members_pass_the_conformance_script() {
    let subject = RealEtcd::start().await;
    conformance::run(&subject).await.unwrap();
    assert_eq!(subject.proxy.answers_left_to_lose(), 0, "an answer that was to be lost was not");
}

#[async_trait]
impl lock::conformance::Subject for RealEtcd {
    fn locks(&self, holder: HostName) -> Arc<dyn Locks> {
        Arc::new(EtcdLocks::new(config(self.proxy.endpoints()), holder))
    }

    async fn lose_answers(&self, writes: u32) {
        Subject::lose_answers(self, writes).await;
    }
}

#[tokio::test]
async fn locks_in_etcd_pass_the_conformance_script() {
    let subject = RealEtcd::start().await;
    lock::conformance::run(&subject).await.unwrap();
    assert_eq!(subject.proxy.answers_left_to_lose(), 0, "an answer that was to be lost was not");
}

#[tokio::test]
async fn an_etcd_that_stands_still_ends_a_holders_time_within_its_lease() {
    let etcd = Etcd::start().await;
    let locks = EtcdLocks::new(config(&[etcd.endpoint()]), HostName::new("xen-1").unwrap());
    let (name, ttl) = (LockName::new("a").unwrap(), Duration::from_secs(3));
    let mut guard = locks.acquire(&name, ttl, Duration::from_secs(30)).await.unwrap();
    etcd.pause().await;
    let deadline = guard.deadline();
    assert!(matches!(guard.renew().await, Err(LockError::Store(_))));
    assert_eq!(guard.deadline(), deadline, "a renewal without an answer gives no time");
    etcd.resume();
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_comes_back_has_kept_every_owner() {
    let mut etcd = Etcd::start().await;
    let (store, vm, me) = (store(&[etcd.endpoint()]), vm("a"), host("xen-1", "boot-1"));
    let token = token_of(until_answered(|| store.start(vm, &me)).await);

    etcd.kill();
    for _ in 0..2 {
        assert_eq!(store.owner(vm).await.unwrap_err().category(), "unavailable");
        assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unavailable");
    }
    etcd.restart().await;
    assert_eq!(until_answered(|| store.start(vm, &me)).await, Start::AlreadyMine(token));
    release(&store, vm, &me, token).await;
}

#[tokio::test]
async fn a_storm_of_starts_outlasts_a_killed_etcd_and_every_answer_given_stays_true() {
    let mut etcd = Etcd::start().await;
    let store = Arc::new(store(&[etcd.endpoint()]));
    let mut starts = JoinSet::new();
    for number in 0..300 {
        let store = Arc::clone(&store);
        starts.spawn(async move {
            let (vm, me) = (vm(&format!("vm {number}")), host(&format!("xen-{}", number % 5), "boot-1"));
            (vm, token_of(until_answered(|| store.start(vm, &me)).await))
        });
    }
    // The kill comes when some have their answer and the others are under way.
    let mut told = Vec::new();
    while told.len() < 20 {
        told.push(starts.join_next().await.unwrap().unwrap());
    }
    etcd.kill();
    etcd.restart().await;
    told.extend(starts.join_all().await);

    let owners = until_answered(|| store.owners()).await;
    assert_eq!(owners.len(), 300);
    for (vm, token) in told {
        assert_eq!(owners[&vm].token, token, "{vm}");
    }
}

#[tokio::test]
async fn a_stopped_etcd_costs_no_more_than_the_time_limit() {
    let etcd = Etcd::start().await;
    let (store, vm, me) = (store(&[etcd.endpoint()]), vm("a"), host("xen-1", "boot-1"));
    let token = token_of(until_answered(|| store.start(vm, &me)).await);

    etcd.pause().await;
    // One endpoint: two attempts, and leave for a busy machine.
    let limit = LIMIT * 2 + Duration::from_secs(2);
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(store.owner(vm).await.unwrap_err().category(), "unavailable");
        assert!(began.elapsed() < limit, "took {:?}", began.elapsed());
    }
    let began = Instant::now();
    assert_eq!(store.release(vm, &me, token).await.unwrap_err().category(), "unavailable");
    assert!(began.elapsed() < limit, "took {:?}", began.elapsed());
    etcd.resume();
    release(&store, vm, &me, token).await;
}

#[tokio::test]
async fn answers_lost_for_ever_end_as_unknown_and_asking_again_settles_it() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start([etcd.address()]).await;
    let (store, vm, me) = (store(proxy.endpoints()), vm("a"), host("xen-1", "boot-1"));
    let other = host("xen-1", "boot-2");
    let first = token_of(until_answered(|| store.start(vm, &me)).await);

    // Each transaction but the first finds the work of the first, so one lost answer is all that a start meets.
    proxy.lose_answers(1);
    let Start::Acquired(second) = store.start(vm, &other).await.unwrap() else { panic!("not acquired") };
    assert!(second > first);
    assert_eq!(proxy.answers_left_to_lose(), 0);

    let released = tokio::join!(store.release(vm, &other, second), stop_at_next_write(&etcd, &proxy)).0;
    assert_eq!(released.unwrap_err().category(), "unknown");
    etcd.resume();
    release(&store, vm, &other, second).await;
}

/// Loses the answer of the next transaction, and stops etcd as soon as it has been passed on.
async fn stop_at_next_write(etcd: &Etcd, proxy: &Proxy) {
    proxy.lose_answers(1);
    while proxy.answers_left_to_lose() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    etcd.pause().await;
}

#[tokio::test]
async fn after_a_commit_of_unknown_result_an_abort_tells_whose_the_virtual_machine_is() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start([etcd.address()]).await;
    let (store, vm) = (store(proxy.endpoints()), vm("a"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    let token = token_of(until_answered(|| store.start(vm, &from)).await);

    let commit = store.commit(vm, &from, token, &to);
    let commit = tokio::join!(commit, stop_at_next_write(&etcd, &proxy)).0;
    assert_eq!(commit.unwrap_err().category(), "unknown");
    etcd.resume();
    // What the stopped etcd had received decides; either way it is one host's, and stays that host's.
    let owner = match until_answered(|| store.abort(vm, &from, token)).await {
        Abort::Aborted(new) => {
            assert!(new > token, "{new} follows {token}");
            until_answered(|| store.owner(vm)).await
        }
        Abort::Refused(owner) => owner,
    };
    let found = owner.clone().unwrap();
    assert!(found.token > token && (found.is(&from) || found.is(&to)), "{found:?} follows {token}");
    assert_eq!(until_answered(|| store.commit(vm, &from, token, &to)).await, Commit::Refused(owner));
}

#[tokio::test]
async fn a_hand_over_outlasts_a_killed_etcd() {
    let mut etcd = Etcd::start().await;
    let (store, vm) = (store(&[etcd.endpoint()]), vm("a"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    let token = token_of(until_answered(|| store.start(vm, &from)).await);
    let Commit::Committed(new) = store.commit(vm, &from, token, &to).await.unwrap() else {
        panic!("not committed")
    };

    etcd.kill();
    assert_eq!(store.abort(vm, &to, new).await.unwrap_err().category(), "unavailable");
    assert_eq!(store.commit(vm, &to, new, &from).await.unwrap_err().category(), "unavailable");
    etcd.restart().await;
    assert_eq!(until_answered(|| store.start(vm, &to)).await, Start::AlreadyMine(new));
}

#[tokio::test]
async fn a_member_that_is_down_or_silent_is_passed_over() {
    let etcd = Etcd::start().await;
    // One refuses connections, the other takes them and never says a word.
    let closed = ReservedPort::new();
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let store = store(&[format!("http://127.0.0.1:{}", closed.number), silent.0.clone(), etcd.endpoint()]);
    let (vm, me) = (vm("a"), host("xen-1", "boot-1"));
    let token = token_of(until_answered(|| store.start(vm, &me)).await);

    let began = Instant::now();
    assert_eq!(store.start(vm, &me).await.unwrap(), Start::AlreadyMine(token));
    assert!(began.elapsed() < LIMIT, "the member that answers is kept: took {:?}", began.elapsed());
}

#[tokio::test]
async fn more_records_than_one_answer_holds_are_listed_whole() {
    const RECORDS: u128 = 2_345;
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let value = r#"{"version":1,"host":"xen-1","bootId":"boot-1","phase":"Running"}"#;
    let puts: Vec<TxnOp> = (0..RECORDS)
        .map(|number| VmUid(uuid::Uuid::from_u128(number << 64)))
        .map(|vm| TxnOp::put(format!("/kubexen/owners/{vm}"), value, None))
        .collect();
    // 128 operations are etcd's limit for one transaction.
    for puts in puts.chunks(128) {
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    // Neighbours of the folder, and a key in it that is none of ours.
    for key in ["/kubexen/owners", "/kubexen/owners-2/x", "/kubexen/owners/x", "/kubexen/owners0"] {
        client.put(key, value, None).await.unwrap();
    }
    let store = EtcdStore::new(EtcdConfig::new(vec![etcd.endpoint()]));
    let owners = store.owners().await.unwrap();
    assert_eq!(owners.len(), usize::try_from(RECORDS).unwrap());
}

#[tokio::test]
async fn mutual_tls_lets_in_those_whom_the_authority_signed_and_access_rules_are_final() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(Some(authority.server())).await;
    let of = |tls: TlsFiles| {
        let tls = Some(tls);
        EtcdStore::new(EtcdConfig { tls, ..EtcdConfig::new(vec![etcd.endpoint()]) })
    };
    let (vm, me) = (vm("a"), host("xen-1", "boot-1"));
    let store = of(authority.client("root"));
    let token = token_of(until_answered(|| store.start(vm, &me)).await);

    let strangers = Authority::new();
    let stranger = TlsFiles { ca: authority.client("other").ca, ..strangers.client("root") };
    assert_eq!(of(stranger).owner(vm).await.unwrap_err().category(), "unavailable");

    let missing = TlsFiles { ca: "/nonexistent/ca.pem".into(), ..authority.client("root") };
    let error = of(missing).owner(vm).await.unwrap_err();
    assert_eq!(error.category(), "configuration");
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(reason.contains("/nonexistent/ca.pem"), "{reason}");

    enable_access_rules(&etcd, &authority.client("root")).await;
    assert_eq!(until_answered(|| store.start(vm, &me)).await, Start::AlreadyMine(token));
    let powerless = of(authority.client("powerless"));
    assert_eq!(powerless.owner(vm).await.unwrap_err().category(), "rejected");
    assert_eq!(powerless.start(vm, &me).await.unwrap_err().category(), "rejected");
}

/// Switches etcd's access rules on: user `root` may do everything, user `powerless` nothing.
async fn enable_access_rules(etcd: &Etcd, tls: &TlsFiles) {
    let pem = |path| std::fs::read(path).unwrap();
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(pem(&tls.ca)))
        .identity(etcd_client::Identity::from_pem(pem(&tls.cert), pem(&tls.key)));
    let options = etcd_client::ConnectOptions::new().with_tls(tls);
    let mut client = Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    for user in ["root", "powerless"] {
        let no_password = etcd_client::UserAddOptions::new().with_no_pwd();
        client.user_add(user, "", Some(no_password)).await.unwrap();
    }
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
}

#[tokio::test]
async fn a_store_whose_leaders_take_long_to_step_down_is_refused_with_the_sum() {
    let refusal = async |milliseconds| {
        let etcd = Etcd::start_with_election_timeout(Duration::from_millis(milliseconds)).await;
        let store = store(&[etcd.endpoint()]);
        let shortest = until_answered(|| store.shortest_lease()).await;
        Timing::DEFAULT.check(shortest * 2 / 3).err().map(|broken| broken.to_string())
    };
    assert_eq!(refusal(1_000).await, None, "etcd's own");
    let broken = refusal(3_000).await.unwrap();
    // Its shortest lease is 4.5 s, rounded up.
    assert!(
        broken.contains("election timeout of 3.33 s + margin 3 s = 30.87 s, which is not below"),
        "{broken}"
    );
}

#[tokio::test]
async fn a_configuration_that_cannot_work_says_so() {
    let vm = vm("a");
    for endpoints in [&[][..], &["not a url".to_owned()], &[String::new()]] {
        let error = store(endpoints).owner(vm).await.unwrap_err();
        assert_eq!(error.category(), "configuration", "{endpoints:?} led to {error:?}");
    }
}
