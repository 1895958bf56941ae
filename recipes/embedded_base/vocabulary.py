"""The words that the embedded base knows: names, things, places, facts and short definitions, all written by hand."""


def words(text: str) -> list[str]:
    return text.split()


def pairs(text: str) -> list[tuple[str, str]]:
    """Parse `a:b c:d` to [(a, b), (c, d)]. An underscore means a space."""
    return [tuple(part.replace("_", " ").split(":")) for part in text.split()]


NAMES = words(
    "Anna Tom Lily Ben Sara Max Mia Sam Lucy Jack Emma Leo Nina Paul Rosa Peter Julia Mark Clara Adam Eva Oscar Ida "
    "Felix Maria David Laura Simon Kate Hugo Amy Daniel Ella Martin Zoe Victor Alice George Hanna Omar Layla Ivan Mei "
    "Carlos Priya Noah Ruth Frank Grace Henry"
)
PLACES = words(
    "garden kitchen park school library shop station market office hotel museum forest beach river farm castle bank "
    "bathroom cellar street airport church hospital bakery theatre tower bridge zoo harbour village"
)
CITIES = words(
    "London Paris Berlin Madrid Rome Oslo Dublin Vienna Lisbon Prague Athens Cairo Tokyo Boston Chicago Delhi Lima "
    "Nairobi Sydney Toronto Warsaw Zurich Hamburg Milan Geneva"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
COLOURS = words("red blue green yellow black white brown grey pink orange purple silver")
ANIMALS = words(
    "cat dog horse cow pig sheep duck hen goat mouse rabbit fox bear wolf lion tiger monkey elephant frog fish whale "
    "bird owl snake bee spider donkey camel turtle penguin"
)
FOOD = words(
    "bread cheese apple banana soup rice cake pizza salad egg carrot potato tomato onion pasta honey butter cookie pear "
    "lemon bean nut grape cherry sandwich pancake"
)
CLOTHES = words("jacket shirt dress coat hat scarf shoe sock skirt glove sweater belt boot")
FURNITURE = words("chair table bed sofa desk shelf lamp mirror carpet cupboard")
MACHINES = words(
    "phone laptop tablet computer camera printer kettle blender watch keyboard radio screen clock oven fridge"
)
TOOLS = words("hammer saw knife spade needle brush axe drill ladder rope")
VEHICLES = words("car bus train bike boat plane truck tram ship taxi")
JOBS = words("doctor teacher baker farmer driver nurse cook pilot painter singer sailor builder dentist lawyer")
POST = words("parcel letter package card invoice receipt ticket order bill refund label form contract coupon")
OBJECTS = CLOTHES + MACHINES + FURNITURE + TOOLS + words("ball book box bag cup bottle key pen tent backpack toy doll")
CATEGORIES = {
    "animal": ANIMALS,
    "food": FOOD,
    "colour": COLOURS,
    "vehicle": VEHICLES,
    "job": JOBS,
    "city": CITIES,
    "tool": TOOLS,
    "month": MONTHS,
}
ADJECTIVES = words(
    "big small old new happy sad fast slow hot cold good bad long short clean dirty open closed heavy light loud quiet "
    "early late soft hard dark bright empty full cheap dear warm cool broken free safe strong weak wet dry"
)
COMMON = words(
    "please thank you wait today tomorrow help account password email login page website app error button update "
    "driver courier address shipping delivery payment price money charge dollar discount return exchange size "
    "subscription plan member renew cancel stop end change send pay buy sell find lose open close press load work "
    "crash freeze slow blank wrong twice late missing damaged number date name code profile browser server video sound"
)
OPPOSITES = pairs(
    "big:small hot:cold fast:slow old:young happy:sad day:night up:down left:right open:closed full:empty long:short "
    "hard:soft light:dark rich:poor early:late clean:dirty wet:dry loud:quiet strong:weak high:low first:last "
    "inside:outside front:back true:false yes:no good:bad easy:difficult near:far cheap:expensive safe:dangerous "
    "thick:thin sharp:blunt wide:narrow deep:shallow sweet:sour begin:end buy:sell win:lose push:pull love:hate "
    "start:stop find:lose arrive:leave give:take remember:forget question:answer before:after above:below "
    "always:never friend:enemy right:wrong alive:dead same:different"
)
PLURALS = pairs(
    "child:children man:men woman:women mouse:mice foot:feet tooth:teeth goose:geese sheep:sheep fish:fish knife:knives "
    "leaf:leaves wolf:wolves city:cities baby:babies story:stories party:parties box:boxes bus:buses dish:dishes "
    "watch:watches potato:potatoes tomato:tomatoes shelf:shelves country:countries fox:foxes dress:dresses"
)
PASTS = pairs(
    "go:went see:saw buy:bought pay:paid send:sent eat:ate drink:drank run:ran take:took give:gave find:found lose:lost "
    "come:came make:made write:wrote read:read sing:sang swim:swam fly:flew sleep:slept speak:spoke break:broke "
    "bring:brought catch:caught know:knew forget:forgot walk:walked play:played open:opened close:closed order:ordered "
    "return:returned cancel:cancelled change:changed jump:jumped cook:cooked wait:waited ask:asked call:called "
    "arrive:arrived help:helped work:worked press:pressed load:loaded charge:charged stop:stopped"
)
CAPITALS = pairs(
    "France:Paris Germany:Berlin Spain:Madrid Italy:Rome Norway:Oslo Ireland:Dublin Austria:Vienna Portugal:Lisbon "
    "Greece:Athens Egypt:Cairo Japan:Tokyo England:London Peru:Lima Kenya:Nairobi Poland:Warsaw India:Delhi"
)
THING_COLOURS = pairs(
    "banana:yellow grass:green snow:white blood:red coal:black lemon:yellow tomato:red sky:blue carrot:orange milk:white "
    "frog:green crow:black cherry:red leaf:green salt:white sun:yellow pig:pink elephant:grey chocolate:brown"
)
SOUNDS = pairs(
    "cat:meow dog:woof cow:moo duck:quack sheep:baa pig:oink hen:cluck owl:hoot bee:buzz snake:hiss frog:croak "
    "lion:roar horse:neigh mouse:squeak wolf:howl"
)
HOMES = pairs(
    "fish:in_the_water bird:in_a_nest bee:in_a_hive lion:in_the_savanna camel:in_the_desert penguin:on_the_ice "
    "whale:in_the_sea cow:on_a_farm dog:in_a_house fox:in_the_forest frog:in_a_pond monkey:in_the_jungle "
    "bear:in_a_cave spider:in_a_web mouse:in_a_hole"
)
JOB_PLACES = pairs(
    "doctor:hospital teacher:school baker:bakery farmer:farm cook:kitchen pilot:plane sailor:ship singer:theatre "
    "nurse:hospital driver:car painter:studio builder:building_site"
)
SIZES = words("ant bee mouse frog cat dog sheep pig horse elephant whale house mountain moon")
DEFINITIONS = {
    "parcel": "a box that you send by post",
    "package": "a wrapped thing that somebody sends to you",
    "courier": "a person who brings parcels to a house",
    "address": "the street and the city where you live",
    "invoice": "a paper that says how much you must pay",
    "receipt": "a paper that shows what you have paid",
    "bill": "a list of what you have to pay",
    "payment": "money that you give for a thing",
    "refund": "money that you get back from a shop",
    "discount": "a lower price for a short time",
    "price": "the money that a thing costs",
    "password": "a secret word that opens your account",
    "account": "your own place on a website",
    "profile": "a page with your name and email address",
    "login": "the step that lets you in with your password",
    "email": "a letter that you send with a computer",
    "browser": "a program that shows web pages",
    "website": "a group of pages on the internet",
    "app": "a small program on your phone",
    "error": "a message that says that something went wrong",
    "update": "a new version of a program",
    "server": "a big computer that sends pages to others",
    "bug": "a mistake in a program",
    "screen": "the part of a phone that shows pictures",
    "button": "a small part that you press",
    "subscription": "a plan that you pay for every month",
    "membership": "the right to be part of a club",
    "contract": "a paper with rules that two people sign",
    "renewal": "the start of a plan for one more year",
    "trial": "a free time to test a thing",
    "exchange": "giving one thing and getting another one",
    "label": "a small paper with a name on it",
    "order": "a wish to buy a thing from a shop",
    "shop": "a place where you buy things",
    "bank": "a place that keeps your money",
    "tax": "money that you pay to the state",
    "card": "a small piece of plastic that you pay with",
    "kettle": "a pot that makes water hot",
    "jacket": "a short coat",
    "tent": "a small house of cloth",
    "mirror": "a glass that shows your face",
    "baker": "a person who makes bread",
    "pilot": "a person who flies a plane",
    "doctor": "a person who helps sick people",
    "teacher": "a person who helps children to learn",
    "farmer": "a person who grows food",
    "library": "a house full of books",
    "bakery": "a shop that sells bread",
    "museum": "a house with old and beautiful things",
    "island": "land with water on all sides",
    "winter": "the cold part of the year",
    "summer": "the warm part of the year",
    "breakfast": "the first meal of the day",
    "knife": "a sharp tool that cuts bread",
    "hammer": "a heavy tool for nails",
    "puppy": "a young dog",
    "kitten": "a young cat",
    "lamb": "a young sheep",
    "coin": "a small round piece of money",
    "calendar": "a list of all days of the year",
}
# nouns that only take an s
WORDS_WITH_S = [
    noun for noun in OBJECTS + ANIMALS + PLACES + POST if noun[-1] not in "syhxf" and not dict(PLURALS).get(noun)
]
