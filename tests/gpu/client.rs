//! A CUDA program that does what it is told: this binary, started once more with [`ARGUMENT`]. It reads a word and
//! numbers from each line of standard input, and answers with a line: a CUresult, and numbers. A check so has processes
//! with environments, users and namespaces of their own. It does nothing by itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use super::cuda::{Address, Code, Cuda, Kernel};

/// What this binary's first argument is for a client.
pub const ARGUMENT: &str = "gpu-client";
/// In place of a CUresult: libcuda.so.1 cannot be loaded.
pub const NO_LIBRARY: Code = -1;
/// CUDA_ERROR_INVALID_VALUE, also for a line that nobody understands.
const INVALID_VALUE: Code = 1;
/// CUDA_ERROR_UNKNOWN, for results that are wrong.
const UNKNOWN: Code = 999;

/// What memory is asked for in, bytes: large pieces first.
const PIECES: [usize; 3] = [256 << 20, 32 << 20, 2 << 20];

/// Serves until standard input ends, or to the line `end`, which is success, or `bye`.
pub fn run() -> ExitCode {
    let mut client = Cuda::load().map(|cuda| Client { cuda, held: Vec::new() });
    let Ok(mut input) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else {
        return ExitCode::FAILURE;
    };
    while let Some(line) = next_line(&mut input) {
        match line.as_str() {
            "end" => return ExitCode::SUCCESS,
            "bye" => break,
            _ => {}
        }
        let answer = match &mut client {
            Ok(client) => client.answer(&line),
            Err(error) => {
                eprintln!("cannot load libcuda.so.1: {error}");
                Err(NO_LIBRARY)
            }
        };
        let (code, numbers) = match answer {
            Ok(numbers) => (0, numbers),
            Err(code) => (code, Vec::new()),
        };
        let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
        // One that nobody listens to any more ends with its input.
        let _ = writeln!(io::stdout(), "{code} {}", words.join(" "));
    }
    ExitCode::FAILURE
}

/// Byte by byte: what comes after `end` is for the next client on the same input.
fn next_line(input: &mut File) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(1) if byte == *b"\n" => return String::from_utf8(line).ok(),
            Ok(1) => line.extend(byte),
            Ok(_) | Err(_) => return None,
        }
    }
}

struct Client {
    cuda: Cuda,
    held: Vec<Address>,
}

impl Client {
    fn answer(&mut self, line: &str) -> Result<Vec<u64>, Code> {
        let mut words = line.split(' ');
        let word = words.next().unwrap_or_default();
        let number: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let nothing = |()| Vec::new();
        match word {
            "version" => self.cuda.version().map(|version| vec![version]),
            "init" => self.cuda.init().map(nothing),
            "context" => self.cuda.make_context().map(nothing),
            "sm-count" => self.cuda.sm_count().map(|count| vec![count]),
            "sms-used" => self.sms_used().map(|count| vec![count]),
            "memory" => self.cuda.memory().map(|(free, total)| vec![free >> 20, total >> 20]),
            "take" => Ok(self.take(number)),
            "give-back" => self.give_back().map(nothing),
            "work" => self.work().map(nothing),
            "spin" => self.cuda.launch(Kernel::Spin, 1, 1, [number * 1_000_000, 0]).map(nothing),
            "fault" => {
                self.cuda.launch(Kernel::Fault, 1, 1, [0, 0])?;
                self.cuda.synchronize().map(nothing)
            }
            "wait" => self.cuda.synchronize().map(nothing),
            _ => Err(INVALID_VALUE),
        }
    }

    /// Takes memory and keeps it, up to so many MiB: how many it got, and the CUresult that ended it.
    fn take(&mut self, most: u64) -> Vec<u64> {
        let (mut taken, mut code) = (0, 0);
        for piece in PIECES {
            let mib = piece as u64 >> 20;
            while taken + mib <= most {
                match self.cuda.allocate(piece) {
                    Ok(address) => self.held.push(address),
                    Err(error) => {
                        code = error.unsigned_abs().into();
                        break;
                    }
                }
                taken += mib;
            }
        }
        vec![taken, code]
    }

    fn give_back(&mut self) -> Result<(), Code> {
        std::mem::take(&mut self.held).into_iter().try_for_each(|address| self.cuda.free(address))
    }

    /// A kernel over 4 MiB, whose result is looked at.
    fn work(&self) -> Result<(), Code> {
        const COUNT: usize = 1 << 20;
        let address = self.cuda.allocate(COUNT * 4)?;
        self.cuda.set_numbers(address, 41, COUNT)?;
        self.cuda.launch(Kernel::AddOne, (COUNT / 256) as u32, 256, [address, 0])?;
        self.cuda.synchronize()?;
        let right = self.cuda.numbers(address, COUNT)?.into_iter().all(|number| number == 42);
        self.cuda.free(address)?;
        if right { Ok(()) } else { Err(UNKNOWN) }
    }

    /// On how many SMs blocks ran, with more blocks than all SMs take at once.
    fn sms_used(&self) -> Result<u64, Code> {
        // More than any GPU has.
        const MOST: usize = 4096;
        let marks = self.cuda.allocate(MOST * 4)?;
        self.cuda.set_numbers(marks, 0, MOST)?;
        self.cuda.launch(Kernel::MarkSms, 4096, 1024, [marks, 200_000])?;
        self.cuda.synchronize()?;
        let used = self.cuda.numbers(marks, MOST)?.into_iter().filter(|mark| *mark != 0).count();
        self.cuda.free(marks)?;
        Ok(used as u64)
    }
}
