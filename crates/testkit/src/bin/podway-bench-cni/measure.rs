//! Latencies, pods per second, resident set, system calls.

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use podway_testkit::lab::find_tool;
use podway_testkit::place::Place;
use podway_testkit::wait::wait_until;
use serde::Serialize;

use crate::contender::{Contender, Node, Pod, Verb, name_of_file};
use crate::options::Options;

/// How many pods are there before the clock starts.
pub(crate) const LEVELS: [usize; 3] = [0, 50, 250];
/// How many calls run at once.
pub(crate) const AT_ONCE: [usize; 2] = [16, 64];
/// A phase that takes longer is not finished.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many calls each figure is made of.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Plan {
    /// One at a time.
    pub(crate) singly: usize,
    /// At once: so many for each that runs.
    pub(crate) each: usize,
}

impl Plan {
    pub(crate) fn new(quick: bool) -> Self {
        if quick { Self { singly: 15, each: 1 } } else { Self { singly: 30, each: 2 } }
    }
}

/// Figures of one level, one value for each round.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Level {
    /// Medians of ADD, one at a time, in milliseconds.
    pub(crate) add: Vec<f64>,
    /// Medians of DEL.
    pub(crate) del: Vec<f64>,
    /// The slowest ADD of them.
    pub(crate) slowest: Vec<f64>,
    /// Pods per second, for each of [`AT_ONCE`].
    pub(crate) adds_per_second: [Vec<f64>; AT_ONCE.len()],
    /// Likewise of DEL, until the last interface is gone from the node.
    pub(crate) dels_per_second: [Vec<f64>; AT_ONCE.len()],
}

/// What does not depend on how busy the machine is.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Costs {
    /// Largest resident set of an ADD in KiB, delegates included; none without the C program.
    pub(crate) resident: Option<u64>,
    /// System calls of an ADD, of all its processes; none without strace.
    pub(crate) calls: Option<usize>,
    /// Of them, messages to the kernel over netlink.
    pub(crate) netlink: Option<usize>,
    /// Of them, waits for a disk.
    pub(crate) syncs: Option<usize>,
    /// Processes of an ADD.
    pub(crate) processes: Option<usize>,
    /// What the program says of itself.
    pub(crate) says: String,
}

/// Everything about one contender.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    pub(crate) levels: [Level; LEVELS.len()],
    pub(crate) costs: Costs,
}

impl Figures {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, levels: Default::default(), costs: Costs::default() }
    }
}

/// The middle one of several; of an even number, the lower of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// One round: every level, on a fresh node.
pub(crate) fn round(one: &Contender, node: &Node, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let place = node.place()?;
    let mut number = 0;
    let mut pods = |count: usize| -> Result<Vec<Pod>> {
        (0..count)
            .map(|_| {
                number += 1;
                Pod::new(place, number)
            })
            .collect()
    };
    let widest = AT_ONCE.iter().max().copied().unwrap_or(1);
    let new = pods(plan.singly.max(widest * plan.each))?;
    let mut existing = 0;
    // The first call finds nothing in the machine's caches, and makes what all pods share.
    singly(one, place, Verb::Add, &new[..1])?;
    singly(one, place, Verb::Del, &new[..1])?;
    let alone = interfaces_without_pods(place)?;
    for (level, wanted) in figures.levels.iter_mut().zip(LEVELS) {
        let more = pods(wanted - existing)?;
        at_once(one, place, Verb::Add, &more, AT_ONCE[0])?;
        existing = wanted;
        let adds = singly(one, place, Verb::Add, &new[..plan.singly])?;
        let dels = singly(one, place, Verb::Del, &new[..plan.singly])?;
        settle(place, alone + existing)?;
        level.slowest.extend(adds.iter().copied().reduce(f64::max));
        level.add.extend(median(&adds));
        level.del.extend(median(&dels));
        for (n, width) in AT_ONCE.into_iter().enumerate() {
            let some = &new[..width * plan.each];
            for (verb, figure) in
                [(Verb::Add, &mut level.adds_per_second[n]), (Verb::Del, &mut level.dels_per_second[n])]
            {
                let began = Instant::now();
                let mut took = at_once(one, place, verb, some, width)?;
                if verb == Verb::Del {
                    settle(place, alone + existing)?;
                    took = began.elapsed();
                }
                figure.push(some.len() as f64 / took.as_secs_f64());
            }
        }
    }
    Ok(())
}

/// Interfaces of the node.
fn interfaces(place: &Place) -> Result<usize> {
    let text = place.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    Ok(text.lines().filter(|line| line.contains(':')).count())
}

/// Interfaces of the node once the last pod's is gone.
fn interfaces_without_pods(place: &Place) -> Result<usize> {
    let mut last = interfaces(place)?;
    // Removal may go on behind a DEL's back: the number falls by one or not at all.
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        last = last.min(interfaces(place)?);
    }
    Ok(last)
}

/// Waits until no more than so many interfaces are on the node.
fn settle(place: &Place, most: usize) -> Result<()> {
    wait_until("the interfaces of deleted pods are gone", PATIENCE, || {
        Ok((interfaces(place)? <= most).then_some(()))
    })
}

/// Calls one after the other; how long each took, in milliseconds.
fn singly(one: &Contender, place: &Place, verb: Verb, pods: &[Pod]) -> Result<Vec<f64>> {
    let began = Instant::now();
    place.enter(|| {
        pods.iter()
            .map(|pod| {
                if began.elapsed() > PATIENCE {
                    bail!("{} calls took more than {} s", pods.len(), PATIENCE.as_secs());
                }
                Ok(call(one, verb, pod)?.as_secs_f64() * 1e3)
            })
            .collect()
    })?
}

/// Calls by so many threads; how long all took.
fn at_once(one: &Contender, place: &Place, verb: Verb, pods: &[Pod], width: usize) -> Result<Duration> {
    let (next, start) = (AtomicUsize::new(0), Barrier::new(width + 1));
    let work = || -> Result<()> {
        start.wait();
        while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            call(one, verb, pod)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..width).map(|_| scope.spawn(|| place.enter(work))).collect();
        start.wait();
        let began = Instant::now();
        for thread in threads {
            match thread.join() {
                Ok(worked) => worked??,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(began.elapsed())
    })
}

/// One call by the thread that is in the node's namespaces: from before the process starts until it has ended and its
/// answer is read.
fn call(one: &Contender, verb: Verb, pod: &Pod) -> Result<Duration> {
    let mut command = one.command(verb, pod, &[])?;
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed();
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{verb:?} ended with {}: {out}{err}", output.status);
    }
    Ok(took)
}

/// What starting a program costs, in milliseconds, and how many start in a second, 16 at once: nobody is better.
pub(crate) fn ceiling(bare: &Path) -> Result<(f64, f64)> {
    const COUNT: usize = 200;
    let nop = || -> Result<f64> {
        let began = Instant::now();
        let output =
            Command::new(bare).arg("nop").env_clear().output().context("run a program that does nothing")?;
        anyhow::ensure!(output.status.success(), "it ended with {}", output.status);
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let times = (0..COUNT).map(|_| nop()).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let run = || (0..COUNT / AT_ONCE[0]).try_for_each(|_| nop().map(drop));
        let threads: Vec<_> = (0..AT_ONCE[0]).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(ran) => ran,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let count = COUNT / AT_ONCE[0] * AT_ONCE[0];
    Ok((median(&times).unwrap_or_default(), count as f64 / began.elapsed().as_secs_f64()))
}

/// Resident set and system calls of an ADD, the second on a node.
pub(crate) fn costs(one: &Contender, options: &Options, files: &Path) -> Result<Costs> {
    let node = one.node()?;
    let place = node.place()?;
    let (first, pod) = (Pod::new(place, 1)?, Pod::new(place, 2)?);
    let mut costs = Costs { says: one.says(), ..Costs::default() };
    let run = |verb: Verb, pod: &Pod, wrapper: &[String]| -> Result<()> {
        let mut command = one.command(verb, pod, wrapper)?;
        let output = place.enter(|| command.output())??;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    };
    run(Verb::Add, &first, &[])?;
    if let Some(bare) = &options.bare {
        let file = files.join(format!("{}.rss", name_of_file(one.name)));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        run(Verb::Add, &pod, &[text(bare), "usage".to_owned(), text(&file)])?;
        run(Verb::Del, &pod, &[])?;
        costs.resident = Some(std::fs::read_to_string(&file)?.trim().parse().context("a number of KiB")?);
    }
    if let Some(strace) = find_tool("strace") {
        let file = files.join(format!("{}.strace", name_of_file(one.name)));
        let words = ["-f", "-qq", "-e", "signal=none", "-o"].map(str::to_owned);
        let head = [strace.to_string_lossy().into_owned()];
        let tail = [file.to_string_lossy().into_owned()];
        run(Verb::Add, &pod, &[&head[..], &words, &tail].concat())?;
        let text = std::fs::read_to_string(&file)?;
        let calls: Vec<&str> = text.lines().filter_map(started).collect();
        let named = |names: &[&str]| {
            calls.iter().filter(|call| names.iter().any(|name| call.starts_with(name))).count()
        };
        costs.calls = Some(calls.len());
        let netlink = calls.iter().filter(|call| call.starts_with("sendto(") || call.starts_with("sendmsg("));
        costs.netlink = Some(netlink.filter(|call| call.contains("nlmsg_len=")).count());
        costs.syncs = Some(named(&["fsync(", "fdatasync(", "sync(", "syncfs("]));
        // Failed ones are looks along PATH.
        let executed = text.lines().filter(|line| line.contains("execve(") && !line.contains("= -1"));
        costs.processes = Some(executed.count());
    }
    Ok(costs)
}

/// The system call that begins on a line of strace; none where one only goes on.
fn started(line: &str) -> Option<&str> {
    let (_, call) = line.trim_start().split_once(' ')?;
    let call = call.trim_start();
    (call.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && call.contains('(')).then_some(call)
}
