//! Commands run inside a lab host: one TCP connection each, to the server in `files/dom0-control-serve.sh`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 and more is a signal, as in shells.
    pub code: u8,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Where one host's server is reached.
#[derive(Debug, Clone)]
pub struct Control {
    /// The forwarded port on this machine's loopback.
    pub port: u16,
    /// What the server asks for, so that other users of this machine do not get a root shell.
    pub token: String,
}

impl Control {
    /// Runs shell text with bash and returns when it has ended, whatever its exit code. When `limit` has passed, or the
    /// caller loses interest, the command and the children in its session are killed.
    ///
    /// # Errors
    /// When the host does not answer, or the command takes longer than `limit`.
    pub async fn run(&self, command: &str, input: &[u8], limit: Duration) -> Result<Output> {
        match tokio::time::timeout(limit, self.talk(command, input)).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("the command did not end within {limit:?}: {command}"),
        }
    }

    async fn talk(&self, command: &str, input: &[u8]) -> Result<Output> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = TcpStream::connect(address).await.context("the host's control port is closed")?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let send = async {
            let header = format!("{}\n{} {}\n", self.token, command.len(), input.len());
            writer.write_all(header.as_bytes()).await?;
            writer.write_all(command.as_bytes()).await?;
            writer.write_all(input).await?;
            // Not closed yet: the end of our side is how the server learns that nobody waits any more.
            std::io::Result::Ok(writer)
        };
        let receive = async {
            let mut header = String::new();
            reader.read_line(&mut header).await?;
            let (code, output_length, errors_length) = parse_header(&header)
                .context("the host's control server hung up; is the host still booting?")?;
            let mut stdout = vec![0; output_length];
            reader.read_exact(&mut stdout).await?;
            let mut stderr = vec![0; errors_length];
            reader.read_exact(&mut stderr).await?;
            anyhow::Ok(Output { code, stdout, stderr })
        };
        // A command may end without reading all of its input; then sending fails and the answer is what counts.
        let (writer, output) = futures::join!(send, receive);
        drop(writer);
        output
    }
}

fn parse_header(line: &str) -> Option<(u8, usize, usize)> {
    let mut fields = line.trim_end().split(' ');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// A word that bash reads as exactly this text.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::OwnedFd,
        process::Command,
    };

    /// Serves connections with the script that runs in dom0, on this machine and in a folder of its own.
    struct Server {
        _folder: tempfile::TempDir,
        control: Control,
    }

    /// Hands each connection to the script as its standard input and output, as socat does in dom0. The thread ends with
    /// the test program.
    fn serve(listener: TcpListener, script: String) {
        let serve_one = move |connection: TcpStream| {
            let output = OwnedFd::from(connection.try_clone()?);
            Command::new("bash")
                .arg(&script)
                .stdin(OwnedFd::from(connection))
                .stdout(output)
                .stderr(Stdio::null())
                .spawn()
        };
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut child = connection.and_then(&serve_one).unwrap();
                std::thread::spawn(move || child.wait());
            }
        });
    }

    fn server() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let script = include_str!("files/dom0-control-serve.sh")
            .replace("/etc/kubexen-lab/token", &path("token"))
            .replace("/run/kubexen-lab", &path(""));
        std::fs::write(path("serve"), script).unwrap();
        std::fs::write(path("token"), "secret\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        serve(listener, path("serve"));
        Server { _folder: folder, control: Control { port, token: "secret".to_owned() } }
    }

    impl Server {
        async fn run(&self, command: &str) -> Result<Output> {
            self.control.run(command, b"", Duration::from_secs(10)).await
        }
    }

    #[tokio::test]
    async fn output_errors_and_exit_code_come_back_apart() {
        let output = server().run("echo out; echo err >&2; exit 7").await.unwrap();
        assert_eq!(output, Output { code: 7, stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() });
    }

    #[tokio::test]
    async fn input_and_output_of_any_bytes_and_length_survive() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
        let server = server();
        let output = server.control.run("cat", &bytes, Duration::from_secs(20)).await.unwrap();
        assert!(output.code == 0 && output.stdout == bytes);
        let unread = server.control.run("exit 3", &bytes, Duration::from_secs(20)).await.unwrap();
        assert_eq!(unread.code, 3);
    }

    #[tokio::test]
    async fn a_command_beyond_its_time_is_killed_with_its_children() {
        let server = server();
        let marker = tempfile::NamedTempFile::new().unwrap();
        let path = marker.path().display();
        let command = format!("sleep 600 & echo $! >{path}; wait");
        let error = server.control.run(&command, b"", Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("did not end within 1s"), "{error}");
        let pid = std::fs::read_to_string(marker.path()).unwrap();
        crate::process::wait_until("the child is gone", Duration::from_secs(5), async || {
            match super::super::process::ProcessRecord::of(pid.trim().parse()?) {
                Ok(record) if record.is_alive() => bail!("still there"),
                _ => Ok(()),
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_daemon_left_behind_does_not_hold_the_answer_back() {
        let output = server().run("setsid sleep 3 & echo started").await.unwrap();
        assert_eq!(output.text(), "started\n");
    }

    #[tokio::test]
    async fn a_stranger_without_the_token_gets_nothing() {
        let server = server();
        let stranger = Control { port: server.control.port, token: "guess".to_owned() };
        assert!(stranger.run("echo in", b"", Duration::from_secs(5)).await.is_err());
    }

    #[test]
    fn quoted_words_stay_one_word() {
        assert_eq!(quoted("ls"), "ls");
        assert_eq!(quoted("it's a $HOME"), r"'it'\''s a $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
