//! What the control port promises.

mod fuzz;
mod server;
mod wire;

use alloc::vec::Vec;

use super::*;

/// A client in a few lines: sends requests to a server over a mock machine and collects what comes back.
struct Bench {
    server: Server,
    machine: MockBackend,
    decoder: Decoder,
    next_id: u32,
    notices: Vec<Notice>,
    notice_ids: Vec<u32>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            server: Server::new(),
            machine: MockBackend::new(),
            decoder: Decoder::new(),
            next_id: 1,
            notices: Vec::new(),
            notice_ids: Vec::new(),
        }
    }

    /// Pushes bytes in and takes out every answer.
    fn exchange(&mut self, mut input: &[u8]) -> Vec<(u32, Answer)> {
        let mut answers = Vec::new();
        // Ends when nothing is left to take and nothing comes any more.
        let mut quiet = 0;
        while quiet < 20 {
            let taken = self.server.poll(&mut self.machine, input);
            input = &input[taken..];
            quiet = if taken > 0 || !self.server.output().is_empty() {
                0
            } else {
                quiet + 1
            };
            let output = self.server.output().to_vec();
            self.server.consume_output(output.len());
            for byte in output {
                match self.decoder.push(byte) {
                    None => {}
                    Some(Err(error)) => panic!("the server sent what is no frame: {error}"),
                    Some(Ok(frame)) if frame.kind == Kind::Answer => {
                        let answer: Answer = body_of(frame.body).expect("an answer");
                        assert!(answer.is_sane(), "{answer:?}");
                        answers.push((frame.id, answer));
                    }
                    Some(Ok(frame)) => {
                        assert_eq!(frame.kind, Kind::Notice);
                        self.notice_ids.push(frame.id);
                        let notice: Notice = body_of(frame.body).expect("a notice");
                        assert!(notice.is_sane(), "{notice:?}");
                        self.notices.push(notice);
                    }
                }
            }
        }
        answers
    }

    fn ask(&mut self, request: &Request) -> Answer {
        let id = self.next_id;
        self.next_id += 1;
        let answers = self.exchange(&request_bytes(id, request));
        match <[(u32, Answer); 1]>::try_from(answers) {
            Ok([(answered, answer)]) => {
                assert_eq!(answered, id);
                answer
            }
            Err(answers) => panic!("{} answers to {request:?}", answers.len()),
        }
    }

    fn refused(&mut self, request: &Request) -> ControlError {
        match self.ask(request) {
            Answer::Error(error) => error,
            other => panic!("{request:?} was not refused: {other:?}"),
        }
    }

    fn create(&mut self, vm: CreateVm) -> u32 {
        match self.ask(&Request::Create(vm)) {
            Answer::Created { vm } => vm,
            other => panic!("not created: {other:?}"),
        }
    }
}

fn request_bytes(id: u32, request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(Kind::Request, id, request, &mut bytes).expect("fits");
    bytes
}

fn name(text: &str) -> Selector {
    Selector::Name(text.into())
}
