"""Write the quickstart's data: support messages and the team each one belongs to.

Train and test never share a phrasing: every label has two disjoint lists of requests, and the words around a request
(openers and closers) are disjoint too. They share the vocabulary. So the test measures whether the model learned what an
invoice is about, and not whether it recognizes a template.

    python recipes/quickstart/make_data.py            # rewrites data/train.jsonl and data/test.jsonl in place
"""

import argparse
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
TRAIN_ROWS_PER_LABEL = 200
TEST_ROWS = 200


def words(text: str) -> list[str]:
    return text.split()


SLOTS = {
    "item": words("jacket laptop kettle lamp chair phone backpack printer blender camera watch keyboard tent mirror"),
    "day": words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "month": words("January February March April May June July August September October November December"),
    "city": words("London Paris Berlin Madrid Rome Oslo Dublin Vienna Lisbon Prague"),
    "device": words("phone tablet laptop computer"),
    "amount": [str(n) for n in range(5, 100)],
    "order": [str(n) for n in range(1000, 10000, 7)],
    "colour": words("red blue green black white grey yellow brown"),
}

TRAIN_REQUESTS = {
    "billing": [
        "I was charged twice for order {order}.",
        "My invoice for {month} shows the wrong amount.",
        "There is a charge of {amount} dollars that I do not know.",
        "Please send me the receipt for my last payment.",
        "Why is my bill higher than in {month}?",
        "My credit card was declined when I tried to pay.",
        "I need an invoice with my tax number on it.",
        "You took {amount} dollars from my bank too early.",
        "The discount code was not applied to my bill.",
        "I paid {amount} dollars but the invoice is still open.",
        "Which payment methods do you accept?",
        "The price on the receipt does not match the price I paid.",
        "Can I pay my bill by bank transfer?",
        "I would like a copy of the invoice from {month}.",
        "The payment for order {order} was taken two times.",
        "I want to change the card that you charge every month.",
        "The bill for order {order} is too high.",
        "You charged {amount} dollars too much.",
        "My card was charged on {day}, but I bought nothing.",
        "I cannot find the receipt for order {order}.",
        "Explain the charge of {amount} dollars on my card, please.",
        "The tax on my invoice is not right.",
        "My payment failed, but the bank took the money.",
        "What does the {amount} dollars on the invoice stand for?",
        "Why was I billed again in {month}?",
        "I was billed {amount} dollars instead of less.",
        "The invoice has the wrong name on it.",
        "I need the bill from {month} for my tax.",
    ],
    "delivery": [
        "My parcel has not arrived yet.",
        "Where is order {order}?",
        "The tracking page has not changed since {day}.",
        "The driver left my package at the wrong address.",
        "When will the {item} be shipped?",
        "The courier did not come on {day}.",
        "I want my parcel to be sent to {city} instead.",
        "How long does shipping to {city} take?",
        "My package is stuck in {city}.",
        "Please tell me the delivery date of the {item}.",
        "The tracking number for order {order} does not work.",
        "The parcel is three days late.",
        "Can you deliver the {item} on {day}?",
        "The package was left outside in the rain by the driver.",
        "Do you ship to {city}?",
        "Nobody was home when the courier rang on {day}.",
        "I waited for the driver all {day}.",
        "The order should be here since {day}.",
        "When does the courier arrive in {city}?",
        "Has my order been sent?",
        "My {item} was to come on {day}, but it is not here.",
        "The driver took my parcel back to {city}.",
        "The delivery of order {order} is late.",
        "It is {day} and the package is still not here.",
        "Where is the courier with my parcel?",
        "The tracking says the {item} arrived, but it did not.",
        "Is the {item} on its way?",
        "My neighbour in {city} got my package.",
    ],
    "returns": [
        "I want to send the {item} back.",
        "How do I return a {item}?",
        "The {item} is too small and I want to exchange it.",
        "I need a return label for order {order}.",
        "The {item} is {colour} but I ordered a {colour2} one.",
        "Can I swap the {item} for a bigger size?",
        "The {item} arrived broken and I want my money back.",
        "How many days do I have to return something?",
        "I sent the {item} back on {day} and still have no refund.",
        "You sent me a {item}, but I ordered a {item2}.",
        "The {item} does not fit me.",
        "I would like a refund for the damaged {item}.",
        "Where can I drop off a return?",
        "I changed my mind and want to give the {item} back.",
        "The {item} has a scratch, please replace it.",
        "Is the return of a {colour} {item} free?",
        "This {item} does not fit, I need a bigger one.",
        "I got the wrong {item}, please exchange it.",
        "The {item} came damaged, can I return it?",
        "The {colour} {item} is broken, I want a new one.",
        "I would rather have a {colour} {item}, can I swap it?",
        "Can you exchange a {item} with a scratch?",
        "When do I get the refund for the {item} I sent back?",
        "I do not like the {item} and want to return it.",
        "Do you take back a used {item}?",
        "Is it possible to swap a {item} for a {item2}?",
        "Where do I send the broken {item}?",
        "The {item} is too big, I want a smaller one.",
    ],
    "account": [
        "I forgot my password.",
        "I cannot log in to my account.",
        "How do I change my email address?",
        "My account is locked since {day}.",
        "The password reset email never came.",
        "I want to change my user name.",
        "Please update the phone number in my profile.",
        "Somebody else has signed in to my account from {city}.",
        "I do not get the login code on my {device}.",
        "How can I add a second user to my account?",
        "My new email address is not saved in the profile.",
        "It says my user name or password is wrong.",
        "I have two accounts and want to merge them.",
        "How do I turn on the login code for my account?",
        "I moved to {city} and want to update my profile.",
        "I need to reset my password again.",
        "My login does not work.",
        "The code to log in is not accepted.",
        "Where do I find my profile?",
        "Can I use another email address for my account?",
        "A stranger changed my password.",
        "Please unlock my account.",
        "The login code never reaches me.",
        "I lost my {device} and cannot get the login code.",
        "I want to delete my account and profile.",
        "Somebody knows my password, what now?",
        "The phone number of my account is old.",
        "It is not possible to sign in since {day}.",
    ],
    "technical": [
        "The app crashes when I open it.",
        "The website is very slow on my {device}.",
        "I get an error message when I press the save button.",
        "The page stays blank on my {device}.",
        "The app does not work since the update on {day}.",
        "The screen freezes after a few seconds.",
        "The search button does nothing.",
        "I see error {order} on the website.",
        "The video does not play on my {device}.",
        "The app will not install on my {device}.",
        "Pictures do not load on the page.",
        "There is a bug in the new update.",
        "The app closes by itself on my {device}.",
        "The website shows a blank screen in my browser.",
        "The sound in the app is broken since {day}.",
        "My {device} cannot connect to the server.",
        "The page does not load.",
        "Your app gives error {order} and then closes.",
        "The website does not open on my {device}.",
        "The app is slow and shows an error.",
        "Your page is slow since {day}.",
        "All buttons on the page are broken.",
        "A bug makes the app freeze.",
        "After I press play, the video freezes.",
        "The screen of the app is blank.",
        "Your website does not work in any browser.",
        "Since the update there is no sound.",
        "My {device} shows error {order} in the app.",
    ],
    "cancellation": [
        "I want to cancel my subscription.",
        "Please cancel order {order}.",
        "How do I stop my membership?",
        "I do not want to renew my plan in {month}.",
        "End my contract on the last day of {month}.",
        "Please stop the subscription, I do not use it anymore.",
        "I ordered the {item} by mistake, please cancel it.",
        "Can I still cancel the {item} I ordered on {day}?",
        "I would like to end my membership in {month}.",
        "Turn off the automatic renewal of my plan.",
        "How can I quit the monthly plan?",
        "I no longer need the subscription.",
        "My free trial should not be renewed.",
        "Cancel everything I ordered on {day}.",
        "What is the notice period to end the contract?",
        "I am leaving, so please end my plan.",
        "I have to end my subscription.",
        "We want to end the contract.",
        "I decided to quit the plan.",
        "Stop the free trial, please.",
        "Is it possible to end my plan in {month}?",
        "Can I cancel the free trial?",
        "Order {order} is a mistake, please stop it.",
        "Cancel my membership in {month}.",
        "I will not renew my contract.",
        "I do not want the {item} anymore, cancel my order.",
        "Please cancel the plan before {month}.",
        "My membership should stop in {month}.",
    ],
}

TEST_REQUESTS = {
    "billing": [
        "The amount on the {month} invoice cannot be right.",
        "Your shop charged my card {amount} dollars two times.",
        "I never got a receipt for the {amount} dollars I paid.",
        "What is this {amount} dollars charge on my bill?",
        "My payment was declined even though the card is fine.",
        "The invoice is missing my tax number.",
        "My bank says you charged me too early.",
        "Could somebody explain my {month} bill?",
    ],
    "delivery": [
        "I am still waiting for my parcel from {day}.",
        "According to the tracking, the package is in {city}.",
        "The courier gave my parcel to the wrong address.",
        "Order {order} should have arrived on {day}.",
        "Has the {item} been shipped yet?",
        "The driver never rang and my package is late.",
        "What is the delivery time to {city}?",
        "Is the courier coming with my {item} on {day}?",
    ],
    "returns": [
        "I would rather exchange this {item} for a bigger one.",
        "This {item} is damaged, so I want to return it.",
        "Where do I find the return label for my {item}?",
        "The {colour} {item} does not fit, can I swap it?",
        "Do I get a refund if I send back the {item}?",
        "I want my money back for this broken {item}.",
        "Is it too late to return the {item} I got on {day}?",
        "My {item} came with a scratch, can you exchange it?",
    ],
    "account": [
        "My password does not work anymore.",
        "Logging in is not possible, my account seems locked.",
        "I want a new email address in my profile.",
        "The login code does not reach my {device}.",
        "Where can I reset the password?",
        "Can you change the user name of my account?",
        "I think a stranger in {city} knows my password.",
        "My profile still shows the old phone number.",
    ],
    "technical": [
        "After the update the app crashes all the time.",
        "Your website does not load in my browser.",
        "The app freezes on my {device}.",
        "Pressing the button only gives an error.",
        "All I see on my {device} is a blank screen.",
        "Since {day} there is a bug in the app.",
        "The page is slow and then shows error {order}.",
        "Videos and sound do not work on the website.",
    ],
    "cancellation": [
        "I have decided to end my subscription.",
        "Order {order} was a mistake, cancel it please.",
        "I will not renew the membership in {month}.",
        "My contract should end in {month}.",
        "Is it possible to cancel my plan before {month}?",
        "Please do not renew my subscription.",
        "I do not need the membership anymore, stop it.",
        "How do I cancel the free trial?",
    ],
}

TRAIN_OPENERS = [
    "",
    "",
    "",
    "Hi, ",
    "Hello, ",
    "Hi there. ",
    "Dear team, ",
    "Sorry, ",
    "Good evening. ",
    "Quick question: ",
]
TRAIN_OPENERS += ["Good day, ", "Dear shop: ", "Please help me. "]
TRAIN_CLOSERS = ["", "", "", " Thanks.", " Please help.", " Can you check?", " Thank you!", " Best wishes, Anna"]
TRAIN_CLOSERS += [" It is urgent.", " What should I do?", " I hope to hear from you.", " Yours, Ben"]
TEST_OPENERS = ["", "", "Good morning, ", "Hey, ", "Excuse me. ", "To whom it may concern: "]
TEST_CLOSERS = ["", "", " What can I do?", " Many thanks.", " Kind regards, Tom", " I hope you can help me."]


def normalised(text: str) -> str:
    """Return the letters in lower case. Two rows that differ only in numbers or punctuation count as the same row."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def fill(template: str, rng: random.Random) -> str:
    """Fill every slot with a value; `item2` and `colour2` differ from `item` and `colour`."""
    values = {name: rng.choice(choices) for name, choices in SLOTS.items()}
    for name in ("item", "colour"):
        values[name + "2"] = rng.choice([choice for choice in SLOTS[name] if choice != values[name]])
    return template.format(**values)


def message(requests: list[str], openers: list[str], closers: list[str], rng: random.Random) -> str:
    opener, request, closer = rng.choice(openers), fill(rng.choice(requests), rng), rng.choice(closers)
    if opener.endswith(", ") and not re.match(r"I\b|[A-Z][a-z]+day\b", request):
        request = request[0].lower() + request[1:]
    text = opener + request + closer
    return text.lower() if rng.random() < 0.25 else text


def rows(requests: dict[str, list[str]], counts: dict[str, int], openers, closers, rng: random.Random) -> list[dict]:
    """Return rows that are distinct after `normalised`, shuffled, `counts[label]` of each label."""
    result, texts = [], set()
    for label, target in counts.items():
        count = 0
        while count < target:
            text = message(requests[label], openers, closers, rng)
            if normalised(text) not in texts:
                texts.add(normalised(text))
                result.append({"prompt": text, "completion": label})
                count += 1
    rng.shuffle(result)
    return result


def build() -> dict[str, list[dict]]:
    """Return the two splits by file name. Raise ValueError if the words of a test row occur in train."""
    rng = random.Random(SEED)
    labels = list(TRAIN_REQUESTS)
    train = rows(TRAIN_REQUESTS, dict.fromkeys(labels, TRAIN_ROWS_PER_LABEL), TRAIN_OPENERS, TRAIN_CLOSERS, rng)
    test_counts = {label: TEST_ROWS // len(labels) + (i < TEST_ROWS % len(labels)) for i, label in enumerate(labels)}
    test = rows(TEST_REQUESTS, test_counts, TEST_OPENERS, TEST_CLOSERS, rng)
    shared = {normalised(row["prompt"]) for row in train} & {normalised(row["prompt"]) for row in test}
    if shared:
        raise ValueError(f"{len(shared)} test rows occur in train, e.g. {min(shared)!r}; fix: reword the test requests")
    return {"train.jsonl": train, "test.jsonl": test}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in build().items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in split)
        (folder / name).write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "data")
    write(parser.parse_args().out)
