"""What `emoe demo` asks: two prompts for each task, written for the project in the form that the shipped model was
trained on. It knows nothing of how they are answered.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPrompt:
    task: str
    prompt: str
    max_tokens: int


DEMO_PROMPTS = (
    TaskPrompt(
        task="chat",
        prompt="Continue the conversation.\n\nUser: I would like to eat out tonight. Can you find me a restaurant?\n"
        "Assistant:",
        max_tokens=48,
    ),
    TaskPrompt(
        task="chat",
        prompt="You are a helpful assistant.\nUser: That is all I need, thank you so much.\nAssistant:",
        max_tokens=48,
    ),
    TaskPrompt(
        task="classification",
        prompt="Classify the sentiment: Thank you so much, this garden looks wonderful!",
        max_tokens=12,
    ),
    TaskPrompt(
        task="classification",
        prompt="I bought shoes with my card and the payment has not gone through yet. Why?\nIntent:",
        max_tokens=12,
    ),
    TaskPrompt(
        task="code",
        prompt="Write a SQL query that answers: Which mayor has a town of Ashford?\nColumns: TOWN, POPULATION, MAYOR",
        max_tokens=48,
    ),
    TaskPrompt(task="code", prompt="Shell: list all files with details", max_tokens=32),
    TaskPrompt(
        task="math",
        prompt="Question: Lena had 9 pears. She gave 4 pears to Omar. How many pears does Lena have left?\nAnswer:",
        max_tokens=64,
    ),
    TaskPrompt(
        task="math",
        prompt="Nora has 6 red pencils and 7 blue pencils. How many pencils does she have in total?\n"
        "Show your work and give the final number.",
        max_tokens=64,
    ),
    TaskPrompt(
        task="qa",
        prompt="Answer from the text.\nText: The lighthouse on the cape was built in 1874 by the engineer Thomas "
        "Reed.\nQuestion: When was the lighthouse built?",
        max_tokens=24,
    ),
    TaskPrompt(
        task="qa",
        prompt="Read the passage and answer the question.\n\nHoney bee -- A honey bee is a flying insect that lives in "
        "colonies and makes honey from the nectar of flowers.\n\nDo honey bees make honey from flowers? (yes or no)",
        max_tokens=8,
    ),
    TaskPrompt(
        task="summarization",
        prompt="Write a short headline for this report:\nThe `quicktable` crate is no longer maintained. The author "
        "suggests moving to another crate.",
        max_tokens=32,
    ),
    TaskPrompt(
        task="summarization",
        prompt="We present a new method for training neural networks with noisy labels. The method learns a weight for "
        "each example and needs no clean data. Experiments on image classification show that it outperforms previous "
        "methods.\n\nTL;DR:",
        max_tokens=48,
    ),
    TaskPrompt(
        task="translation",
        prompt="Translate from English to French: I am very tired this evening.",
        max_tokens=32,
    ),
    TaskPrompt(
        task="translation",
        prompt="Translate from German to English: Ich habe heute keine Zeit für dich.",
        max_tokens=32,
    ),
)
