"""Task families of the embedded base: seeded generators of (question, answer), one function each.

No family sorts a message into a topic, an intent or a team. That is the quickstart's task, which must be new to the base.
Families over messages only copy, count or find things in them.
"""

import random
from collections.abc import Callable

import vocabulary as v
from stories import story

QA = tuple[str, str]
ALL_WORDS = sorted({*v.OBJECTS, *v.ANIMALS, *v.FOOD, *v.POST, *v.PLACES, *v.ADJECTIVES, *v.COMMON, *v.COLOURS})


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def some_words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(ALL_WORDS, rng.randint(low, high))


MESSAGES = [
    "{name} bought a {colour} {thing} for {amount} dollars on {day}.",
    "On {day} {name} ordered a {colour} {thing} and paid {amount} dollars.",
    "Order {order}: one {colour} {thing} for {name}, sent to {city}.",
    "Hello, I am {name} from {city} and my order number is {order}.",
    "The parcel with the {colour} {thing} came to {city} on {day}.",
    "{name} lives in {city} and wants a {colour} {thing}.",
    "The invoice of {name} from {month} is {amount} dollars.",
    "My name is {name} and I paid {amount} dollars with my card in {month}.",
    "{name} got {amount} dollars back for the {colour} {thing}.",
    "The courier brings the {colour} {thing} to {name} on {day}.",
    "Please send order {order} to {city} on {day}, thanks, {name}.",
    "{name} has the login code {order} and the phone of {name} is {colour}.",
    "In {month} {name} travels from {city} with a {colour} {thing}.",
    "The app of {name} showed error {order} on {day}.",
    "{name} ended the plan in {month} and saved {amount} dollars.",
    "Dear {name}, your {thing} for {amount} dollars is in {city} now.",
]
FIELD_QUESTIONS = {
    "name": ["What is the name?", "Which name is in the text?", "Find the name."],
    "thing": ["Which thing is it?", "What thing is in the text?", "Find the thing."],
    "colour": ["Which colour?", "What is the colour?", "Find the colour."],
    "amount": ["How many dollars?", "What is the amount?", "How much money?"],
    "day": ["Which day?", "On which day?", "Find the day."],
    "month": ["Which month?", "In which month?", "Find the month."],
    "city": ["Which city?", "What is the city?", "Find the city."],
    "order": ["What is the number?", "Which number is in the text?", "Find the number."],
}


def fields(rng: random.Random) -> dict[str, str]:
    return {
        "name": rng.choice(v.NAMES),
        "thing": rng.choice(v.OBJECTS),
        "colour": rng.choice(v.COLOURS),
        "amount": str(rng.randint(2, 99)),
        "day": rng.choice(v.DAYS),
        "month": rng.choice(v.MONTHS),
        "city": rng.choice(v.CITIES),
        "order": str(rng.randint(1000, 9999)),
    }


def sentence(rng: random.Random) -> str:
    """Return a short sentence: a message, or a line of a story."""
    if rng.random() < 0.5:
        return rng.choice(MESSAGES).format(**fields(rng))
    return rng.choice(story(rng)[1].split(". ")).rstrip(".") + "."


def extraction(rng: random.Random) -> QA:
    template, values = rng.choice(MESSAGES), fields(rng)
    field = rng.choice([name for name in FIELD_QUESTIONS if "{" + name + "}" in template])
    text, question = template.format(**values), rng.choice(FIELD_QUESTIONS[field])
    return rng.choice([f"{text} {question}", f"{question} {text}", f"Read: {text}\n{question}"]), values[field]


def small_talk(rng: random.Random) -> QA:
    name, day, location = rng.choice(v.NAMES), rng.choice(v.DAYS), rng.choice(v.PLACES)
    thing = article(rng.choice(v.OBJECTS))
    turns = [
        (["Hello", "Hi", "Hey", "Hi there", "Hello there"], "Hello! How can I help you?"),
        (["Good morning", "Good evening", "Good day"], "{greeting}! How can I help you?"),
        (["How are you", "How do you do", "Are you well"], "I am fine, thank you!"),
        (["Thanks", "Thank you", "Many thanks", "Thank you very much"], "You are welcome!"),
        (["Bye", "Goodbye", "See you", f"See you on {day}"], "Goodbye!"),
        ([f"My name is {name}", f"I am {name}", f"You can call me {name}"], f"Nice to meet you, {name}!"),
        (["Who are you", "What are you", "What is your name"], "I am a small language model."),
        ([f"I like the {location}", f"I was at the {location} on {day}"], f"The {location} is a nice place."),
        ([f"I have {thing}", f"I got {thing} on {day}"], f"What do you do with {thing}?"),
    ]
    greetings, reply = rng.choice(turns)
    greeting = rng.choice(greetings)
    mark = "?" if greeting.split()[0] in {"How", "Are", "Who", "What"} else rng.choice([".", "!", ""])
    return greeting + mark, reply.format(greeting=greeting)


def echo(rng: random.Random) -> QA:
    text = sentence(rng) if rng.random() < 0.6 else " ".join(some_words(rng, 1, 6))
    ask = rng.choice(["Repeat: {}", "Say: {}", "Copy this text: {}", "Please repeat after me: {}", "Write this: {}"])
    return ask.format(text), text


def upper_case(rng: random.Random) -> QA:
    text = " ".join(some_words(rng, 1, 3))
    return rng.choice(["Write in upper case: {}", "In capital letters: {}", "Make it upper case: {}"]).format(
        text
    ), text.upper()


def lower_case(rng: random.Random) -> QA:
    text = " ".join(some_words(rng, 1, 3))
    return rng.choice(["Write in lower case: {}", "In small letters: {}", "Make it lower case: {}"]).format(
        text.upper()
    ), text


def word_position(rng: random.Random) -> QA:
    some = some_words(rng, 3, 6)
    which, index = rng.choice([("first", 0), ("second", 1), ("last", -1)])
    text = " ".join(some)
    ask = rng.choice(["What is the {w} word: {t}", "Give me the {w} word of: {t}", "Which word is {w}? {t}"])
    return ask.format(w=which, t=text), some[index]


def count_words(rng: random.Random) -> QA:
    some = some_words(rng, 1, 8)
    ask = rng.choice(["How many words are here: {}", "Count the words: {}", "Number of words: {}"])
    return ask.format(" ".join(some)), str(len(some))


def arithmetic(rng: random.Random) -> QA:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.5:
        ask, answer = rng.choice(["What is {} plus {}?", "{} + {} =", "Add {} and {}."]), a + b
    else:
        a, b = max(a, b), min(a, b)
        ask, answer = rng.choice(["What is {} minus {}?", "{} - {} =", "How much is {} less {}?"]), a - b
    return ask.format(a, b), str(answer)


def compare_numbers(rng: random.Random) -> QA:
    a, b = rng.sample(range(1, rng.choice([20, 100, 1000])), 2)
    asks = [("Which is larger, {} or {}?", max), ("Which number is smaller, {} or {}?", min)]
    asks += [("What costs more, {} dollars or {} dollars?", max), ("What is less: {} or {}?", min)]
    ask, choose = rng.choice(asks)
    return ask.format(a, b), str(choose(a, b))


def where_is(rng: random.Random) -> QA:
    people, places = rng.sample(v.NAMES, 3), rng.sample(v.PLACES, 4)
    verb = rng.choice(["is in", "goes to", "waits at", "sits in"])
    lines = [f"{person} {verb} the {room}." for person, room in zip(people, places, strict=False)]
    i = rng.randrange(3)
    if rng.random() < 0.3:
        lines.append(f"Then {people[i]} goes to the {places[3]}.")
        places[i] = places[3]
    text = " ".join(lines)
    if rng.random() < 0.5:
        return f"{text} Where is {people[i]}?", places[i]
    return f"{text} Who is in the {places[i]}?", people[i]


def who_has(rng: random.Random) -> QA:
    people, things = rng.sample(v.NAMES, 3), rng.sample(v.OBJECTS + v.POST, 3)
    verb = rng.choice(["has", "buys", "wants", "sends", "finds"])
    text = " ".join(f"{person} {verb} the {thing}." for person, thing in zip(people, things, strict=True))
    i = rng.randrange(3)
    if rng.random() < 0.5:
        return f"{text} Who {verb} the {things[i]}?", people[i]
    return f"{text} What is with {people[i]}?", things[i]


def opposite(rng: random.Random) -> QA:
    pair = list(rng.choice(v.OPPOSITES))
    ask = rng.choice(
        ["What is the opposite of {}?", "Give the opposite of {}.", "Opposite of {}?", "The opposite of {} is"]
    )
    # A word with several opposites has no single right answer.
    word, answer = pair if rng.random() < 0.5 else reversed(pair)
    while sum(word in other for other in v.OPPOSITES) > 1:
        word, answer = rng.choice(v.OPPOSITES)
    return ask.format(word), answer


def plural(rng: random.Random) -> QA:
    regular = [(noun, noun + "s") for noun in v.WORDS_WITH_S]
    noun, answer = rng.choice(v.PLURALS if rng.random() < 0.4 else regular)
    return rng.choice(["What is the plural of {}?", "Plural of {}?", "One {}, two", "More than one {}?"]).format(
        noun
    ), answer


def past_tense(rng: random.Random) -> QA:
    verb, past = rng.choice(v.PASTS)
    ask = rng.choice(
        ["What is the past of {}?", "Past tense of {}?", "Today I {}. Yesterday I", "Give the past of {}."]
    )
    return ask.format(verb), past


def category(rng: random.Random) -> QA:
    kind, members = rng.choice(list(v.CATEGORIES.items()))
    word = rng.choice(members)
    if rng.random() < 0.4:
        ask = rng.choice(
            ["What kind of thing is {}?", "What is {}: an animal, a food or something else?", "{} is a kind of"]
        )
        return ask.format(word), kind
    other = rng.choice([name for name in v.CATEGORIES if name != kind])
    group = rng.choice([kind, other])
    ask = rng.choice(["Is {} {}?", "Would you say that {} is {}?", "True or not: {} is {}. Yes or no?"])
    is_member = word in v.CATEGORIES[group]
    return ask.format(word, article(group)), "yes" if is_member else "no"


def pick_by_kind(rng: random.Random) -> QA:
    kinds = rng.sample(list(v.CATEGORIES), 3)
    members = [rng.choice(v.CATEGORIES[kind]) for kind in kinds]
    i = rng.randrange(3)
    ask = rng.choice(["Which of these is {}: {}?", "Find {}: {}.", "Which one is {}? {}"])
    return ask.format(article(kinds[i]), ", ".join(members)), members[i]


def yes_no(rng: random.Random) -> QA:
    name, (colour, other_colour), (thing, other) = (
        rng.choice(v.NAMES),
        rng.sample(v.COLOURS, 2),
        rng.sample(v.OBJECTS, 2),
    )
    text = rng.choice(["{} has a {} {}.", "{} buys a {} {}.", "{} sees a {} {}."]).format(name, colour, thing)
    pair = rng.choice([(colour, thing), (colour, thing), (other_colour, thing), (colour, other)])
    ask = rng.choice(["Is it a {} {}?", "Is there a {} {}?", "Yes or no: a {} {}?"])
    return f"{text} {ask.format(*pair)}", "yes" if pair == (colour, thing) else "no"


def in_list(rng: random.Random) -> QA:
    some = some_words(rng, 3, 6)
    word = rng.choice(some) if rng.random() < 0.5 else rng.choice(ALL_WORDS)
    ask = rng.choice(["Is {w} in this list: {l}?", "List: {l}. Is {w} in it?", "Do you see {w} here? {l}"])
    return ask.format(w=word, l=", ".join(some)), "yes" if word in some else "no"


def sort_numbers(rng: random.Random) -> QA:
    some = [str(n) for n in rng.sample(range(1, 100), rng.randint(3, 4))]
    ask = rng.choice(["Sort these numbers: {}", "Put in order, small to big: {}", "Sort: {}"])
    return ask.format(", ".join(some)), ", ".join(sorted(some, key=int))


def sort_words(rng: random.Random) -> QA:
    some = {word[0]: word for word in some_words(rng, 20, 20)}  # distinct first letters
    chosen = rng.sample(list(some.values()), 3)
    ask = rng.choice(["Sort by letter: {}", "Put these words in alphabetical order: {}", "From A to Z: {}"])
    return ask.format(", ".join(chosen)), ", ".join(sorted(chosen))


def reverse_words(rng: random.Random) -> QA:
    some = some_words(rng, 2, 5)
    ask = rng.choice(["Say these words backwards: {}", "Turn the order around: {}", "Reverse the words: {}"])
    return ask.format(" ".join(some)), " ".join(reversed(some))


def replace_word(rng: random.Random) -> QA:
    some = some_words(rng, 3, 5)
    i, new = rng.randrange(len(some)), rng.choice(ALL_WORDS)
    ask = rng.choice(["Replace {a} with {b}: {t}", "Change {a} to {b} in: {t}"])
    changed = [*some[:i], new, *some[i + 1 :]]
    return ask.format(a=some[i], b=new, t=" ".join(some)), " ".join(changed)


def first_letter(rng: random.Random) -> QA:
    word = rng.choice(ALL_WORDS)
    which, letter = rng.choice([("first", word[0]), ("first", word[0]), ("last", word[-1])])
    return rng.choice(["What is the {} letter of {}?", "Give the {} letter of {}."]).format(which, word), letter


def next_in_order(rng: random.Random) -> QA:
    if rng.random() < 0.4:
        n = rng.randint(1, 98)
        step, ask = rng.choice([(1, "Which number comes after {}?"), (-1, "Which number comes before {}?")])
        return ask.format(n), str(n + step)
    ring = rng.choice([v.DAYS, v.MONTHS])
    i = rng.randrange(len(ring))
    step, ask = rng.choice([(1, "What comes after {}?"), (-1, "What comes before {}?"), (1, "It is {}. What is next?")])
    return ask.format(ring[i]), ring[(i + step) % len(ring)]


def bigger_thing(rng: random.Random) -> QA:
    i, j = rng.sample(range(len(v.SIZES)), 2)
    ask, choose = rng.choice([("Which is bigger, {} or {}?", max), ("What is smaller: {} or {}?", min)])
    return ask.format(article(v.SIZES[i]), article(v.SIZES[j])), v.SIZES[choose(i, j)]


def facts(rng: random.Random) -> QA:
    tables = [
        (v.CAPITALS, ["What is the capital of {}?", "Capital of {}?", "Which city is the capital of {}?"]),
        (v.THING_COLOURS, ["What colour is {}?", "Which colour has {}?", "The colour of {}?"]),
        (v.SOUNDS, ["What does a {} say?", "Which sound does a {} make?", "The sound of a {}?"]),
        (v.HOMES, ["Where does a {} live?", "Where is the home of a {}?", "Where can I find a {}?"]),
        (v.JOB_PLACES, ["Where does a {} work?", "Where is a {} at work?", "The place of work of a {}?"]),
    ]
    table, asks = rng.choice(tables)
    key, answer = rng.choice(table)
    return rng.choice(asks).format(key), answer


def definition(rng: random.Random) -> QA:
    word, meaning = rng.choice(list(v.DEFINITIONS.items()))
    if rng.random() < 0.5:
        ask = rng.choice(["What is {}?", "Explain: {}", "What do you mean by {}?", "Please tell me what {} is."])
        return ask.format(article(word)), f"{meaning[0].upper()}{meaning[1:]}."
    ask = rng.choice(["Which word means: {}?", "What do we call {}?", "{} is called", "I look for the word for {}."])
    return ask.format(meaning), word


FAMILIES: dict[str, Callable[[random.Random], QA]] = {
    make.__name__: make
    for make in (
        small_talk, echo, upper_case, lower_case, word_position, count_words, arithmetic, compare_numbers, where_is,
        who_has, opposite, plural, past_tense, category, pick_by_kind, yes_no, in_list, sort_numbers, sort_words,
        reverse_words, replace_word, first_letter, next_in_order, bigger_thing, facts, definition, extraction,
    )
}  # fmt: skip


def question(rng: random.Random, name: str | None = None) -> QA:
    """Return a question and its only right answer. One of ten questions has no capital letter and no final mark."""
    ask, answer = FAMILIES[name or rng.choice(list(FAMILIES))](rng)
    starts_plainly = ask.split()[0] not in v.NAMES and ask[1:2].islower()
    if rng.random() < 0.1 and ask[-1] in "?.!" and starts_plainly and not ask.endswith(answer):
        ask = (ask[0].lower() + ask[1:])[:-1]
    return ask, answer


def story_request(rng: random.Random) -> QA:
    about, text = story(rng)
    asks = [
        "Tell me a story about {}.",
        "A story about {}, please.",
        "Please write a short story about {}.",
        "Story: {}",
    ]
    return rng.choice(asks).format(about), text


def prose(rng: random.Random) -> str:
    """Return plain text without chat tokens: a story, or a question with its answer."""
    if rng.random() < 0.6:
        return story(rng)[1]
    ask, answer = question(rng)
    return f"Question: {ask} Answer: {answer}".replace("\n", " ")
