//! Where text goes: a stream for people, a stream for data, and a bar that neither wrecks.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The streams of a console.
///
/// A stream that cannot be written (a terminal that was closed, a reader that had enough) is no
/// reason to end a run, so errors are passed over.
pub(super) struct Screen {
    people: Box<dyn Write + Send>,
    data: Box<dyn Write + Send>,
    /// Makes the place where bars are drawn: the same as where `people` writes.
    target: Box<dyn Fn() -> ProgressDrawTarget + Send>,
    bar: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new(
        people: impl Write + Send + 'static,
        data: impl Write + Send + 'static,
        target: impl Fn() -> ProgressDrawTarget + Send + 'static,
    ) -> Self {
        let (people, data, target) = (Box::new(people), Box::new(data), Box::new(target));
        Self {
            people,
            data,
            target,
            bar: None,
        }
    }

    /// Text for people, above the bar if there is one.
    pub(super) fn show(&mut self, text: &str) {
        let people = &mut self.people;
        let mut write = || {
            // One call, so that another process's lines do not come between.
            let _ = people.write_all(format!("{text}\n").as_bytes());
            let _ = people.flush();
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// A line of data, with its line feed.
    pub(super) fn data(&mut self, line: &str) {
        let _ = self.data.write_all(line.as_bytes());
        let _ = self.data.flush();
    }

    /// Starts a bar over `steps`, in place of what was there.
    pub(super) fn start_bar(&mut self, done: u64, steps: u64) {
        let style = ProgressStyle::with_template("[{bar:24}] {wide_msg}")
            .map(|style| style.progress_chars("=> "));
        let style = style.expect("the template is right");
        self.replace_bar(
            ProgressBar::with_draw_target(Some(steps), (self.target)()).with_style(style),
        );
        self.update_bar(done, format!("{done}/{steps}"));
    }

    /// Moves the bar to `position`, with `text` beside it.
    pub(super) fn update_bar(&mut self, position: u64, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(text);
        }
    }

    /// A line that the next one replaces, while it is not known how long something takes.
    pub(super) fn show_briefly(&mut self, text: &str) {
        if self.bar.is_none() {
            let style = ProgressStyle::with_template("{wide_msg}").expect("the template is right");
            self.replace_bar(
                ProgressBar::with_draw_target(None, (self.target)()).with_style(style),
            );
        }
        self.update_bar(0, text.to_owned());
    }

    fn replace_bar(&mut self, bar: ProgressBar) {
        self.remove_bar();
        self.bar = Some(bar);
    }

    /// Takes the bar off the screen.
    pub(super) fn remove_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Leaves the bar where it stopped; what follows goes below it.
    pub(super) fn leave_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}
