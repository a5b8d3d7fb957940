//! Tests of the pool, with workers in shell.

use super::*;
use crate::hypervisor::xen::protocol::Target;
use std::future::pending;
use tokio::io::AsyncReadExt;

const LONG: Duration = Duration::from_secs(20);

/// A worker in shell. `$id` is the message's number.
fn shell(answer: &str) -> Supervisor {
    let script = format!(r#"while read -r line; do id=${{line#*:}}; id=${{id%%,*}}; {answer}; done"#);
    Supervisor::new(WorkerCommand { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] })
}

const END: &str = r#"echo "libxl-worker: end of call $id" >&2"#;
const DONE: &str = r#"echo "{\"id\":$id,\"outcome\":\"Done\"}" >&0"#;

#[tokio::test]
async fn calls_reuse_one_worker() {
    let pool = shell(&format!(r#"echo "pid $$" >&2; {END}; {DONE}"#));
    let first = pool.call(Request::Version, LONG).await.unwrap();
    let second = pool.call(Request::Version, LONG).await.unwrap();
    assert_eq!(first.outcome, Outcome::Done);
    assert_eq!(first.log, second.log);
}

#[tokio::test]
async fn a_refusal_carries_the_errors_of_its_own_call_and_retires_the_worker() {
    let pool = shell(&format!(
        r#"echo "libxl: notice: $$" >&2; echo "libxl: error: no such kernel $$" >&2; {END}; echo "{{\"id\":$id,\"outcome\":{{\"Refused\":-3}}}}" >&0"#
    ));
    let first = pool.call(Request::Version, LONG).await.unwrap();
    assert_eq!(first.outcome, Outcome::Refused(-3));
    assert!(first.log.starts_with("libxl: error: no such kernel"), "{}", first.log);
    let second = pool.call(Request::Version, LONG).await.unwrap();
    assert_ne!(first.log, second.log, "the same process answered");
}

#[tokio::test]
async fn a_call_over_its_limit_is_killed_with_its_whole_group_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let path = mark.display();
    let pool = shell(&format!(
        r#"if [ -e {path} ]; then {END}; {DONE}; else sleep 1000 & echo $! >{path}.part; mv {path}.part {path}; wait; fi"#
    ));
    let result = pool.call(Request::Version, Duration::from_millis(500)).await;
    assert!(matches!(result, Err(CallError::TimedOut)), "{result:?}");
    let grandchild: i32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
    let pid = Pid::from_raw(grandchild).unwrap();
    let deadline = Instant::now() + LONG;
    while alive(pid) {
        assert!(Instant::now() < deadline, "the worker's child lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(pool.call(Request::Version, LONG).await.unwrap().outcome, Outcome::Done);
}

/// Whether a process runs; one that is dead and waits to be reaped does not.
fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|text| !text.contains(") Z "))
}

#[tokio::test]
async fn a_worker_that_dies_is_told_with_its_last_words() {
    let pool = shell("echo 'libxl: error: assertion failed' >&2; kill -9 $$");
    let result = pool.call(Request::Version, LONG).await;
    assert!(
        matches!(&result, Err(CallError::Broken(text)) if text.contains("assertion failed")),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_worker_that_died_idle_is_not_used() {
    let pool = shell(&format!(r#"{END}; {DONE}; exit"#));
    for _ in 0..3 {
        assert_eq!(pool.call(Request::Version, LONG).await.unwrap().outcome, Outcome::Done);
        let deadline = Instant::now() + LONG;
        while pool.idle.lock().unwrap().iter_mut().any(|worker| matches!(worker.child.try_wait(), Ok(None))) {
            assert!(Instant::now() < deadline, "the worker did not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn an_endless_line_is_cut_and_an_endless_log_keeps_its_end() {
    let pool = shell(&format!(
        r#"head -c 1000000 /dev/zero | tr '\0' x >&2; echo >&2; seq 1000 >&2; {END}; {DONE}"#
    ));
    let answer = pool.call(Request::Version, LONG).await.unwrap();
    assert!(answer.log.ends_with("; 1000") && answer.log.len() <= DETAIL_BYTES, "{}", answer.log);
}

#[tokio::test]
async fn a_worker_with_a_stream_writes_to_it_and_ends_it_before_it_answers() {
    let pool = shell(&format!(r#"echo from the guest; exec >/dev/null; {END}; {DONE}"#));
    let (worker, mut stream) = pool.start_streaming().unwrap();
    let mut text = String::new();
    let (answer, read) =
        tokio::join!(worker.call(Request::Version, pending()), stream.read_to_string(&mut text));
    assert_eq!(answer.unwrap().outcome, Outcome::Done);
    read.unwrap();
    assert_eq!(text, "from the guest\n");
    assert!(pool.idle.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_worker_with_a_stream_that_does_not_end_is_killed() {
    let pool = shell("sleep 1000");
    let (worker, mut stream) = pool.start_streaming().unwrap();
    let result = worker.call(Request::Version, async {}).await;
    assert!(matches!(result, Err(CallError::TimedOut)), "{result:?}");
    // All holders of the other end are gone.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn more_calls_than_workers_wait_their_turn() {
    let pool = shell(&format!(r#"{END}; {DONE}"#));
    let calls = (0..WORKERS * 3).map(|_| pool.call(Request::Version, LONG));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(pool.idle.lock().unwrap().len() <= WORKERS);
}

#[tokio::test]
async fn domains_are_taken_apart_while_all_other_workers_are_busy() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let path = mark.display();
    let pool = shell(&format!(
        r#"case $line in *Destroy*) ;; *) echo >>{path}; while :; do sleep 1000; done;; esac; {END}; {DONE}"#
    ));
    let others = futures::future::join_all((0..WORKERS).map(|_| pool.call(Request::Version, LONG)));
    let ends = async {
        while std::fs::read(&mark).is_ok_and(|marks| marks.len() < WORKERS) || !mark.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let target = |domid| Target { domid, uuid: uuid::Uuid::from_u128(domid.into()) };
        let calls = (0..20).map(|domid| pool.call(Request::Destroy(target(domid)), LONG));
        futures::future::join_all(calls).await
    };
    tokio::select! {
        _ = others => panic!("they are busy"),
        ends = ends => assert!(ends.iter().all(Result::is_ok), "{ends:?}"),
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told() {
    let pool = Supervisor::new(WorkerCommand { program: "/nonexistent".into(), arguments: Vec::new() });
    let result = pool.call(Request::Version, LONG).await;
    assert!(matches!(result, Err(CallError::NotStarted(_))), "{result:?}");
}
