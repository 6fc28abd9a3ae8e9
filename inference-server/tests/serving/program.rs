//! The real program, started by a test, and what it is asked.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ortolan_protocol::failure::Failure;
use ortolan_protocol::grpc::model_infer_request::InferInputTensor;
use ortolan_protocol::grpc::{InferTensorContents, ModelInferRequest};
use ortolan_protocol::stats::Stats;
use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::{model, runtime_library};

/// Longer than anything here takes; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program, running. It ends with the test.
pub struct Program {
    child: Child,
    pub client: reqwest::Client,
    log: std::sync::mpsc::Receiver<String>,
    pub said: String,
    termination_message: tempfile::NamedTempFile,
    pub http: u16,
    pub grpc: u16,
    pub ops: u16,
}

impl Program {
    pub fn start(model: &str, flags: &[&str]) -> Self {
        Self::start_in(model, flags, &[])
    }

    /// One that has loaded the model that adds.
    pub async fn serving(flags: &[&str]) -> Self {
        Self::start(&add_model(), flags).ready().await
    }

    /// With more in its environment.
    pub fn start_in(model: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let termination_message = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ortolan-server"));
        command.arg("serve").args(["--model", model]).args(flags);
        // What comes by environment can be overruled by flags.
        for (name, value) in [
            ("NAME", "add"),
            ("ADDRESS", "127.0.0.1"),
            ("THREADS", "1"),
            ("HTTP_PORT", "0"),
            ("GRPC_PORT", "0"),
            ("OPS_PORT", "0"),
        ] {
            command.env(format!("ORTOLAN_{name}"), value);
        }
        command.env("ORT_DYLIB_PATH", runtime_library()).env("ORTOLAN_TERMINATION_MESSAGE", termination_message.path());
        command.envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = std::sync::mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line + "\n")));
        Self { child, client: client(), log, said: String::new(), termination_message, http: 0, grpc: 0, ops: 0 }
    }

    /// Reads the log until it says where the program listens.
    pub fn listening(mut self) -> Self {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it does not listen: {}", self.said));
            self.said.push_str(&line);
            if line.contains("listening") {
                let port = |name: &str| {
                    line.split_once(&format!("{name}=")).unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
                };
                (self.http, self.grpc, self.ops) = (port("http"), port("grpc"), port("ops"));
                return self;
            }
        }
    }

    pub async fn ready(self) -> Self {
        let program = self.listening();
        program.until("/readyz", StatusCode::OK).await;
        program
    }

    /// Asks the operations port until it answers so.
    pub async fn until(&self, path: &str, status: StatusCode) {
        let start = Instant::now();
        while self.ops(path).await.0 != status {
            assert!(start.elapsed() < PATIENCE, "{path} never was {status}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn ops(&self, path: &str) -> (StatusCode, String) {
        let response = self.client.get(format!("http://127.0.0.1:{}{path}", self.ops)).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    pub async fn stats(&self) -> Stats {
        serde_json::from_str(&self.ops("/stats").await.1).unwrap()
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub async fn exit(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.said.extend(self.log.iter());
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.said);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops it, and hears it to the end.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.exit().await;
    }

    pub fn failure(&self) -> Failure {
        serde_json::from_slice(&std::fs::read(self.termination_message.path()).unwrap()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has usually ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn client() -> reqwest::Client {
    // Whoever comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

pub fn add_model() -> String {
    model("add").to_str().unwrap().to_owned()
}

pub fn body() -> String {
    let tensor = |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]});
    json!({"inputs": [tensor("a"), tensor("b")]}).to_string()
}

pub fn message() -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: vec![1.0, 2.0, 3.0], ..Default::default() };
    let tensor = |name: &str| InferInputTensor {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 3],
        contents: Some(contents.clone()),
        ..Default::default()
    };
    ModelInferRequest { model_name: "add".to_owned(), inputs: vec![tensor("a"), tensor("b")], ..Default::default() }
}
