//! What `deploy/speaker.md` says, read out of it: a section's machines, the files on them, what an operator types there,
//! and what is answered. So the examples of the page are what is tested, and no copy of them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/speaker.md");
/// Line of an answer that stands for any number of lines.
const ANYTHING: &str = "…";

/// A section of the page.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// From its table of machines.
    pub(crate) machines: Vec<(String, Ipv4Addr)>,
    pub(crate) files: Vec<File>,
    pub(crate) commands: Vec<Asked>,
}

/// A file of an example: its block begins with `# PATH on MACHINE`, or `!` where that begins a comment.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) machine: String,
    pub(crate) text: String,
}

/// What is typed, in a block of `sh` that begins with `# on MACHINE`, and what is answered, in the block of `text` after it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) machine: String,
    pub(crate) command: String,
    pub(crate) answer: Option<String>,
}

impl Section {
    /// Reads the section under a heading.
    pub(crate) fn read(heading: &str) -> Result<Self> {
        let page = std::fs::read_to_string(PAGE).with_context(|| format!("read {PAGE}"))?;
        let begin = format!("## {heading}\n");
        let (_, rest) = page.split_once(&begin).with_context(|| format!("{PAGE} has no {begin:?}"))?;
        let text = rest.split("\n## ").next().unwrap_or(rest);
        let mut section = Self::default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(machine) = machine(line) {
                section.machines.push(machine);
            } else if let Some(kind) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                section.take(kind, &block)?;
            }
        }
        for name in
            section.files.iter().map(|file| &file.machine).chain(section.commands.iter().map(|c| &c.machine))
        {
            ensure!(section.machines.iter().any(|(known, _)| known == name), "{heading}: who is {name}?");
        }
        Ok(section)
    }

    fn take(&mut self, kind: &str, block: &[&str]) -> Result<()> {
        let text = format!("{}\n", block.join("\n"));
        let first = block.first().copied().unwrap_or_default();
        let said = first.strip_prefix("# ").or_else(|| first.strip_prefix("! ")).unwrap_or_default();
        match (kind, said.split_once("on ")) {
            ("sh", Some(("", machine))) => {
                for command in block.iter().skip(1) {
                    let (machine, command) = (machine.to_owned(), (*command).to_owned());
                    self.commands.push(Asked { machine, command, answer: None });
                }
            }
            (_, Some((path, machine))) if path.starts_with('/') => {
                let (path, machine) = (path.trim().to_owned(), machine.to_owned());
                self.files.push(File { path, machine, text });
            }
            ("text", _) => match self.commands.last_mut() {
                Some(asked) if asked.answer.is_none() => asked.answer = Some(text),
                _ => bail!("an answer without a question:\n{text}"),
            },
            _ => bail!("nobody knows what this block is:\n{text}"),
        }
        Ok(())
    }

    /// The file of a machine.
    pub(crate) fn file(&self, machine: &str) -> Result<&File> {
        self.files
            .iter()
            .find(|file| file.machine == machine)
            .with_context(|| format!("{machine} has no file"))
    }
}

/// A row `` | `name`, with BIRD | 10.0.0.1 | ``.
fn machine(line: &str) -> Option<(String, Ipv4Addr)> {
    let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
    let name = cells.next()?.split('`').next()?.to_owned();
    Some((name, cells.next()?.parse().ok()?))
}

/// Whether an answer is the one of the page: word by word, but for times of day, durations and whatever stands where the
/// page says `…`.
pub(crate) fn matches(page: &str, answer: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().map(timeless).collect::<Vec<_>>().join(" ")).collect()
    };
    let (page, answer) = (words(page.trim()), words(answer.trim()));
    let mut answer = answer.iter().peekable();
    let mut skipping = false;
    for wanted in &page {
        if wanted == ANYTHING {
            skipping = true;
            continue;
        }
        let found = match skipping {
            true => answer.any(|line| same(wanted, line)),
            false => answer.next().is_some_and(|line| same(wanted, line)),
        };
        if !found {
            return false;
        }
        skipping = false;
    }
    skipping || answer.next().is_none()
}

/// Word by word; `…` at the end stands for any words, and elsewhere for one.
fn same(page: &str, answer: &str) -> bool {
    let (page, answer): (Vec<&str>, Vec<&str>) = (page.split(' ').collect(), answer.split(' ').collect());
    let open = page.last() == Some(&ANYTHING);
    let long_enough = if open { answer.len() >= page.len() } else { answer.len() == page.len() };
    long_enough && page.iter().zip(&answer).all(|(page, answer)| *page == ANYTHING || page == answer)
}

/// `12s`, `00:00:09` and `02:24:16.123]` are all the same.
fn timeless(word: &str) -> String {
    let digits = word.trim_end_matches([']', 's', 'm']);
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let clock: Vec<&str> = digits.split('.').next().unwrap_or_default().split(':').collect();
    let is_clock = clock.len() == 3 && clock.iter().all(|part| part.len() == 2 && number(part));
    let is_duration = digits.len() < word.len() && number(digits);
    if is_clock || is_duration { "TIME".to_owned() } else { word.to_owned() }
}

#[test]
fn answers_are_compared_word_by_word_but_for_times() {
    assert!(matches("a  9s\n…\nx [p 01:02:03.4] y", "a 119s\nb\nc\nx  [p 23:59:59.000] y\n"));
    assert!(matches("a … c …", "a b c d e") && !matches("a … c", "a b c d"));
    assert!(matches("…\nx", "a\nx") && matches("a\n…", "a\nb\nc"));
    for (page, answer) in
        [("a b", "a"), ("a", "a b"), ("a\n…\nx", "a\nb"), ("a", "a\nb"), ("64999:1", "64999:2")]
    {
        assert!(!matches(page, answer), "{page:?} and {answer:?}");
    }
}
