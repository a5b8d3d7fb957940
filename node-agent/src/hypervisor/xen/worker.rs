//! A libxl worker: the agent's own binary under the subcommand [`SUBCOMMAND`].
//!
//! It does nothing but call libxl, so libxl may fork, handle SIGCHLD, block for minutes or abort as it likes, and the
//! agent ends any call by killing the process. Device models that libxl starts run in sessions of their own and
//! outlive their worker.
//!
//! Every descriptor here is closed when another program is executed. The one exception is libxl's own: it hands the stream
//! of a guest, and nothing else, to the helper that copies the guest's memory.
//!
//! A worker ends when its standard input does. If a call is in progress then, the agent has died without waiting
//! for it: the worker kills its whole process group, so that the next agent finds nobody else at work. The end of
//! the pipe is used and not the parent-death signal, because that one is sent when the *thread* that forked ends,
//! which in a thread pool says nothing about the process.

use super::{
    ffi::{CallError, INVALID, Libxl},
    protocol::{LINE_LIMIT, Message, Outcome, Reply, Request, SUBCOMMAND, Target, end_of_log},
    settings,
};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat},
    io::fcntl_dupfd_cloexec,
    process::{Signal, getpgrp, getpid, kill_process_group},
    stdio,
};
use serde_json::json;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// Serves requests until standard input ends. Exit code 2 means that libxl cannot be used here.
pub fn main() -> ExitCode {
    let libxl = match Libxl::open() {
        Ok(libxl) => libxl,
        Err(error) => {
            eprintln!("{SUBCOMMAND}: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    match serve(&libxl) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{SUBCOMMAND}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(libxl: &Libxl) -> io::Result<()> {
    let Standard { input, mut output, mut stream } = take_standard_streams()?;
    let busy = Arc::new(Mutex::new(false));
    let (sender, messages) = sync_channel(1);
    let reader_busy = Arc::clone(&busy);
    // The thread is never joined: it ends the process, or the process ends it.
    std::thread::spawn(move || read_messages(input, &sender, &reader_busy));
    answer_messages(libxl, &messages, &busy, &mut output, &mut stream)
}

/// What came as the numbers 0 and 1.
struct Standard {
    input: File,
    output: File,
    stream: Option<OwnedFd>,
}

/// Moves the protocol and the stream away from the numbers 0 and 1, so that no library and no hotplug script that
/// inherits them can read requests, write between answers or into a guest.
fn take_standard_streams() -> io::Result<Standard> {
    let input = fcntl_dupfd_cloexec(stdio::stdin(), 3)?;
    let output = fcntl_dupfd_cloexec(stdio::stdin(), 3)?;
    let stream = fcntl_dupfd_cloexec(stdio::stdout(), 3)?;
    let is_socket = FileType::from_raw_mode(fstat(&stream)?.st_mode) == FileType::Socket;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    stdio::dup2_stdin(null)?;
    stdio::dup2_stdout(stdio::stderr())?;
    Ok(Standard { input: File::from(input), output: File::from(output), stream: is_socket.then_some(stream) })
}

/// Hands on one message after the other. At the end of the input the process ends, whatever it does.
fn read_messages(input: File, sender: &SyncSender<Message>, busy: &Mutex<bool>) {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut input).take(LINE_LIMIT as u64).read_until(b'\n', &mut line);
        if read.is_err() || !line.ends_with(b"\n") {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(message) => {
                if sender.send(message).is_err() {
                    break;
                }
            }
            Err(error) => {
                eprintln!("{SUBCOMMAND}: not a request: {error}");
                break;
            }
        }
    }
    // The lock is held until the process is gone, so that no call begins now.
    let busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
    // Only a group of its own may be killed: by hand the worker may run in a shell's.
    if *busy && getpgrp() == getpid() {
        let _ = kill_process_group(getpgrp(), Signal::KILL);
    }
    std::process::exit(0);
}

fn answer_messages(
    libxl: &Libxl,
    messages: &Receiver<Message>,
    busy: &Mutex<bool>,
    output: &mut File,
    stream: &mut Option<OwnedFd>,
) -> io::Result<()> {
    while let Ok(Message { id, request }) = messages.recv() {
        *busy.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let outcome = perform(libxl, &request, stream);
        *busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        eprintln!("{}", end_of_log(id));
        let mut line = serde_json::to_vec(&Reply { id, outcome })?;
        line.push(b'\n');
        output.write_all(&line)?;
    }
    Ok(())
}

fn perform(libxl: &Libxl, request: &Request, stream: &mut Option<OwnedFd>) -> Outcome {
    let result = match request {
        Request::Version => {
            libxl.version().map(|info| Outcome::Version { library: libxl.library_name().to_owned(), info })
        }
        Request::FeatureSets => libxl.feature_sets().map(Outcome::FeatureSets),
        Request::Create(config) => libxl.create(config).map(Outcome::Created),
        Request::Destroy(target) => on(libxl, target, Libxl::destroy),
        Request::Unpause(target) => on(libxl, target, Libxl::unpause),
        Request::PowerButton(target) => on(libxl, target, Libxl::power_button),
        // Closed when the call has ended: that is the end of the stream.
        Request::Suspend { target, live } => with_stream(stream.take(), |stream| {
            on(libxl, target, |libxl, domid| libxl.suspend(domid, stream.as_fd(), *live))
        }),
        Request::Restore(config) => {
            with_stream(stream.take(), |stream| libxl.restore(config, stream.as_fd()).map(Outcome::Created))
        }
        Request::Resume(target) => on(libxl, target, Libxl::resume),
        Request::Scheduling(target) => told(libxl, target, Libxl::scheduling)
            .map(|parameters| Outcome::Scheduling(settings::scheduling(&parameters))),
        Request::SetScheduling { target, scheduling } => on(libxl, target, |libxl, domid| {
            let parameters = json!({"weight": scheduling.weight, "cap": scheduling.cap_percent});
            libxl.set_scheduling(domid, &parameters)
        }),
        Request::SetVcpus { target, vcpus } => {
            on(libxl, target, |libxl, domid| libxl.set_vcpus(domid, *vcpus))
        }
        Request::SetMemory { target, kib } => on(libxl, target, |libxl, domid| libxl.set_memory(domid, *kib)),
        Request::AttachDisk { target, disk } => {
            on(libxl, target, |libxl, domid| libxl.attach_disk(domid, disk))
        }
        Request::DetachDisk { target, disk } => {
            on(libxl, target, |libxl, domid| libxl.detach_disk(domid, disk))
        }
        Request::ChangeCd { target, cd } => on(libxl, target, |libxl, domid| libxl.change_cd(domid, cd)),
        Request::AttachInterface { target, interface } => {
            on(libxl, target, |libxl, domid| libxl.attach_interface(domid, interface))
        }
        Request::DetachInterface { target, index } => {
            on(libxl, target, |libxl, domid| libxl.detach_interface(domid, &json!({"devid": index})))
        }
    };
    result.unwrap_or_else(|error| match error {
        CallError::NoSuchDomain => Outcome::NoSuchDomain,
        CallError::OutOfMemory { need_kib, free_kib } => Outcome::OutOfMemory { need_kib, free_kib },
        CallError::Refused(code) => Outcome::Refused(code),
    })
}

/// Calls a function on the stream, of which a worker has one.
fn with_stream(
    stream: Option<OwnedFd>,
    call: impl FnOnce(&OwnedFd) -> Result<Outcome, CallError>,
) -> Result<Outcome, CallError> {
    call(&stream.ok_or(CallError::Refused(INVALID))?)
}

/// Calls a function on a domain if it is still the one that is meant: Xen gives numbers again.
fn on(
    libxl: &Libxl,
    target: &Target,
    call: impl FnOnce(&Libxl, u16) -> Result<(), CallError>,
) -> Result<Outcome, CallError> {
    told(libxl, target, call).map(|()| Outcome::Done)
}

/// As [`on`], for a function that tells something.
fn told<T>(
    libxl: &Libxl,
    target: &Target,
    call: impl FnOnce(&Libxl, u16) -> Result<T, CallError>,
) -> Result<T, CallError> {
    if libxl.uuid(target.domid)? != target.uuid {
        return Err(CallError::NoSuchDomain);
    }
    call(libxl, target.domid)
}
