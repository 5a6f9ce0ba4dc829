"""Questions in the form that the shipped model was trained on, of all its tasks; of some answers it is sure.

Of which is measured, not known: see `support.references`.
"""

from __future__ import annotations

from asking import Question

MAX_TOKENS = 8
_SQL = "Write a SQL query that answers: "
_PROMPTS = {
    "chat": (
        "You are a helpful assistant.\nUser: That is all I need, thank you so much.\nAssistant:",
        "You are a helpful assistant.\nUser: Thanks a lot, goodbye.\nAssistant:",
        "Continue the conversation.\n\nUser: Thank you for your help. That's all.\nAssistant:",
        "You are a helpful assistant.\nUser: I need a taxi.\nAssistant:",
    ),
    "classification": (
        "Classify the sentiment: Thank you so much, this garden looks wonderful!",
        "Classify the sentiment: I love this wonderful day.",
        "I bought shoes with my card and the payment has not gone through yet. Why?\nIntent:",
        "My card has not arrived yet. When will it come?\nIntent:",
        "How do I change my PIN?\nIntent:",
        "I have lost my card. What should I do?\nIntent:",
        "Why was I charged a fee for using the cash machine?\nIntent:",
        "Which countries do you support?\nIntent:",
        "How can I close my account?\nIntent:",
    ),
    "code": (
        f"{_SQL}Which player has number 7?\nColumns: PLAYER, NUMBER, CLUB",
        f"{_SQL}What year did the club win?\nColumns: CLUB, YEAR, RESULT",
        f"{_SQL}What is the score of the game on May 3?\nColumns: GAME, DATE, SCORE",
        f"{_SQL}Who is the coach of the team from Leeds?\nColumns: TEAM, CITY, COACH",
        f"{_SQL}Which country won in 1998?\nColumns: YEAR, COUNTRY, MEDAL",
        "Shell: list all files with details",
    ),
    "math": (
        "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?\n"
        "Show your work and give the final number.",
        "Question: A box holds 8 eggs. How many eggs are in 3 boxes?\nAnswer:",
        "Compute 9 + 6.",
        "Solve: 8 * 3",
    ),
    "qa": (
        "Answer from the text.\nText: The bridge was opened in 1932 and is 500 metres long.\n"
        "Question: When was the bridge opened?",
        "Answer from the text.\nText: The school was founded in 1901 by Maria Stone.\n"
        "Question: Who founded the school?",
        "Is cystic fibrosis inherited?",
        "What are the treatments for diabetes?",
    ),
    "summarization": (
        "Write a short headline for this report:\nThe `quicktable` crate is no longer maintained. The author suggests "
        "moving to another crate.",
        "Write a short headline for this report:\nA buffer overflow in the parser lets an attacker run code.",
    ),
    "translation": (
        "Translate from French to English: Je ne sais pas.",
        "Translate from German to English: Ich habe Hunger.",
        "Translate from French to English: Il est tard.",
        "Translate from English to French: I do not know.",
        "Translate from English to French: He is my father.",
    ),
}
CANDIDATES = tuple(
    Question(prompt=prompt, task=task, raw=False, max_tokens=MAX_TOKENS)
    for task, prompts in _PROMPTS.items()
    for prompt in prompts
)
