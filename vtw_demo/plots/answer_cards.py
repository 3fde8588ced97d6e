"""The two answers with what they cost, as HTML. All text in it is escaped."""

from dataclasses import dataclass

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.plots.glossary import term
from vtw_demo.plots.templates import TEMPLATES


@dataclass(frozen=True)
class AnswerCard:
    """What is known of one run so far; `result` once it is complete."""

    run: RunName
    layer: int
    text: str = ""
    new_tokens: int = 0
    is_running: bool = False
    result: Run | None = None

    def to_html(self) -> str:
        return TEMPLATES.get_template("answer_card.html").render(
            run_name=self.run,
            layer=self.layer,
            text=self.result.answer if self.result else self.text,
            new_tokens=self.new_tokens,
            is_running=self.is_running,
            run=self.result,
            term=term,
        )
