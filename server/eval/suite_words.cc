#include "server/eval/suite_words.h"

namespace lacuna::server {
namespace {

constexpr std::string_view kAdjectives[] = {
    "amber",   "ancient", "arctic",  "autumn", "bitter",  "black",  "bold",   "brave",  "brief",
    "bright",  "broad",   "bronze",  "calm",   "careful", "clever", "cold",   "copper", "crimson",
    "curious", "daring",  "dark",    "deep",   "distant", "dusty",  "eager",  "early",  "empty",
    "faint",   "famous",  "fancy",   "fierce", "final",   "flat",   "fresh",  "frosty", "gentle",
    "giant",   "golden",  "grand",   "gray",   "green",   "happy",  "hasty",  "heavy",  "hidden",
    "hollow",  "humble",  "icy",     "idle",   "iron",    "ivory",  "jolly",  "keen",   "kind",
    "large",   "late",    "lazy",    "light",  "little",  "lively", "lonely", "loud",   "lucky",
    "marble",  "mellow",  "misty",   "modern", "narrow",  "neat",   "nimble", "noble",  "odd",
    "olive",   "pale",    "patient", "plain",  "polite",  "proud",  "purple", "quick",  "quiet",
    "rapid",   "rare",    "ripe",    "rough",  "round",   "royal",  "rusty",  "sacred", "scarlet",
    "secret",  "sharp",   "shiny",   "silent", "silver",  "simple", "sleepy", "slow",   "small",
    "smooth",  "soft",    "solid",   "spare",  "stark",   "steady", "steep",  "still",  "stormy",
    "strange", "strong",  "sudden",  "sunny",  "sweet",   "swift",  "tall",   "tame",   "tender",
    "thin",    "tidy",    "tiny",    "tough",  "vast",    "velvet", "violet", "warm",   "weary",
    "white",   "wide",    "wild",    "wise",   "witty",   "wooden", "yellow", "young",  "zesty"};

constexpr std::string_view kNouns[] = {
    "acorn",   "anchor",   "apple",   "arrow",    "badger",  "banner",  "barley",   "basket",
    "beacon",  "bell",     "bench",   "berry",    "bishop",  "blanket", "bottle",   "branch",
    "bridge",  "bucket",   "button",  "cabin",    "candle",  "canyon",  "captain",  "carpet",
    "castle",  "cedar",    "chapel",  "cherry",   "circle",  "cliff",   "clover",   "comet",
    "compass", "copper",   "coral",   "cottage",  "cousin",  "crane",   "creek",    "cricket",
    "crown",   "dagger",   "dancer",  "desert",   "diamond", "dolphin", "dragon",   "drum",
    "eagle",   "ember",    "engine",  "falcon",   "farmer",  "feather", "fiddle",   "field",
    "finch",   "flame",    "forest",  "fountain", "fox",     "garden",  "gate",     "glacier",
    "glove",   "goblet",   "grove",   "hammer",   "harbor",  "harp",    "hawk",     "heron",
    "hill",    "honey",    "horse",   "island",   "jacket",  "jewel",   "kettle",   "key",
    "kitten",  "ladder",   "lagoon",  "lantern",  "laurel",  "ledger",  "lemon",    "letter",
    "lily",    "lion",     "lizard",  "lobster",  "locket",  "loom",    "maple",    "market",
    "meadow",  "melon",    "mill",    "mirror",   "monk",    "moon",    "mountain", "needle",
    "nest",    "oak",      "oar",     "ocean",    "orchard", "otter",   "owl",      "oyster",
    "paddle",  "palace",   "panther", "parrot",   "path",    "pearl",   "pebble",   "pepper",
    "piano",   "pigeon",   "pilot",   "pine",     "planet",  "plum",    "pond",     "poppy",
    "prairie", "puzzle",   "quarry",  "quill",    "rabbit",  "raven",   "ribbon",   "river",
    "robin",   "rocket",   "rose",    "saddle",   "sailor",  "salmon",  "scholar",  "shadow",
    "shell",   "shepherd", "shield",  "ship",     "shore",   "sparrow", "spider",   "spring",
    "spruce",  "stable",   "star",    "statue",   "stone",   "storm",   "stream",   "summit",
    "sword",   "table",    "temple",  "thistle",  "thunder", "tiger",   "timber",   "torch",
    "tower",   "trail",    "tulip",   "turtle",   "valley",  "village", "violin",   "wagon",
    "walnut",  "well",     "whale",   "wheel",    "willow",  "window",  "winter",   "wolf",
    "wren",    "zebra"};

constexpr std::string_view kFirstNames[] = {
    "Ada",    "Adam",   "Agnes",  "Albert", "Alice",  "Amara", "Amir",   "Ana",    "Anders",
    "Anita",  "Arthur", "Astrid", "Bela",   "Bruno",  "Carla", "Carlos", "Chen",   "Clara",
    "Conrad", "Dalia",  "Daniel", "Daria",  "David",  "Diego", "Edith",  "Elena",  "Elias",
    "Emil",   "Esther", "Farid",  "Felix",  "Fiona",  "Frida", "Gemma",  "George", "Greta",
    "Hana",   "Harold", "Hassan", "Helga",  "Henry",  "Hugo",  "Ida",    "Igor",   "Ines",
    "Ingrid", "Iris",   "Isaac",  "Ivan",   "Jacob",  "Jana",  "Jonas",  "Josef",  "Julia",
    "Karim",  "Karin",  "Kenji",  "Lars",   "Laura",  "Lena",  "Leo",    "Liam",   "Lina",
    "Louis",  "Lucia",  "Magnus", "Malik",  "Marco",  "Maria", "Marta",  "Mei",    "Miguel",
    "Mina",   "Nadia",  "Naomi",  "Nils",   "Nina",   "Noah",  "Olga",   "Omar",   "Oscar",
    "Paula",  "Pavel",  "Petra",  "Priya",  "Rafael", "Ravi",  "Rosa",   "Ruth",   "Samir",
    "Sara",   "Sofia",  "Stefan", "Tara",   "Theo",   "Tomas", "Ulrich", "Vera",   "Victor",
    "Wanda",  "Yara",   "Yusuf",  "Zoe"};

constexpr std::string_view kLastNames[] = {
    "Abbott",  "Alvarez", "Anderson", "Baker",   "Banerjee", "Barnes",   "Becker",  "Bennett",
    "Bianchi", "Blake",   "Brandt",   "Brown",   "Carter",   "Castillo", "Chandra", "Chen",
    "Clarke",  "Cohen",   "Costa",    "Cruz",    "Dahl",     "Davies",   "Delgado", "Duarte",
    "Dubois",  "Ellis",   "Evans",    "Ferrari", "Fischer",  "Flores",   "Foster",  "Fox",
    "Garcia",  "Gomez",   "Grant",    "Gupta",   "Haas",     "Hall",     "Hansen",  "Harris",
    "Hayashi", "Hill",    "Hoffman",  "Holm",    "Hughes",   "Ibrahim",  "Ito",     "Jansen",
    "Johnson", "Kaur",    "Keller",   "Khan",    "Kim",      "Klein",    "Kovacs",  "Kumar",
    "Larsen",  "Lee",     "Lopez",    "Lund",    "Marsh",    "Martin",   "Mendez",  "Meyer",
    "Miller",  "Moreau",  "Morgan",   "Mori",    "Moss",     "Nakamura", "Nielsen", "Novak",
    "Olsen",   "Ortiz",   "Owens",    "Park",    "Patel",    "Perez",    "Petrov",  "Quinn",
    "Ramos",   "Reed",    "Rivera",   "Romano",  "Rossi",    "Santos",   "Sato",    "Schmidt",
    "Shah",    "Silva",   "Singh",    "Smith",   "Sousa",    "Stein",    "Suzuki",  "Tanaka",
    "Torres",  "Turner",  "Varga",    "Vogel",   "Wagner",   "Walsh",    "Weber",   "White",
    "Wong",    "Wright",  "Yamada",   "Young",   "Zhang",    "Ziegler"};

constexpr std::string_view kCities[] = {
    "Accra",     "Algiers",   "Ankara",    "Athens",    "Baghdad",    "Bangkok",  "Barcelona",
    "Beirut",    "Belgrade",  "Berlin",    "Bogota",    "Boston",     "Brussels", "Budapest",
    "Cairo",     "Calgary",   "Caracas",   "Chicago",   "Copenhagen", "Dakar",    "Dallas",
    "Delhi",     "Dhaka",     "Dublin",    "Edinburgh", "Florence",   "Geneva",   "Hamburg",
    "Hanoi",     "Havana",    "Helsinki",  "Istanbul",  "Jakarta",    "Kigali",   "Kyoto",
    "Leipzig",   "Lima",      "Lisbon",    "London",    "Lyon",       "Madrid",   "Manila",
    "Marseille", "Melbourne", "Miami",     "Montreal",  "Moscow",     "Mumbai",   "Munich",
    "Nairobi",   "Naples",    "Osaka",     "Oslo",      "Ottawa",     "Paris",    "Perth",
    "Prague",    "Quito",     "Reykjavik", "Riga",      "Rome",       "Santiago", "Seattle",
    "Seoul",     "Shanghai",  "Sofia",     "Stockholm", "Sydney",     "Taipei",   "Tallinn",
    "Tehran",    "Tokyo",     "Turin",     "Valencia",  "Vancouver",  "Venice",   "Vienna",
    "Warsaw",    "Zagreb",    "Zurich"};

constexpr std::string_view kJobs[] = {
    "accountant", "actor",        "architect", "astronomer", "barber",      "botanist",  "butcher",
    "carpenter",  "clerk",        "cook",      "courier",    "dancer",      "dentist",   "doctor",
    "editor",     "electrician",  "engineer",  "farmer",     "firefighter", "fisherman", "florist",
    "gardener",   "geologist",    "historian", "jeweler",    "journalist",  "judge",     "lawyer",
    "librarian",  "locksmith",    "mechanic",  "miner",      "musician",    "nurse",     "painter",
    "pharmacist", "physicist",    "pilot",     "plumber",    "poet",        "potter",    "printer",
    "professor",  "sailor",       "sculptor",  "surgeon",    "surveyor",    "tailor",    "teacher",
    "translator", "veterinarian", "waiter",    "watchmaker", "weaver",      "welder",    "writer",
    "zoologist"};

constexpr std::string_view kColors[] = {"beige", "black",     "blue",     "brown",  "gray",
                                        "green", "indigo",    "lavender", "maroon", "navy",
                                        "olive", "orange",    "pink",     "red",    "scarlet",
                                        "teal",  "turquoise", "violet",   "white",  "yellow"};

constexpr std::string_view kPets[] = {"canary", "cat",      "dog",     "donkey", "ferret",
                                      "goat",   "goldfish", "hamster", "horse",  "lizard",
                                      "parrot", "pigeon",   "pony",    "rabbit", "turtle"};

constexpr std::string_view kPetNames[] = {"Biscuit", "Clover", "Cosmo",  "Daisy",   "Domino",
                                          "Ginger",  "Jasper", "Luna",   "Mango",   "Marble",
                                          "Nutmeg",  "Olive",  "Pepper", "Pickle",  "Pixel",
                                          "Rusty",   "Shadow", "Toffee", "Waffles", "Ziggy"};

constexpr std::string_view kRooms[] = {
    "attic",   "basement",    "bedroom",    "boathouse", "cellar",  "chapel",       "dining room",
    "garage",  "garden shed", "greenhouse", "hallway",   "kitchen", "laundry room", "library",
    "nursery", "pantry",      "stable",     "study",     "tower",   "workshop"};

constexpr std::string_view kSettings[] = {
    "batch", "budget", "delay",   "depth", "level",     "limit",   "margin", "offset", "port",
    "quota", "rate",   "retries", "size",  "threshold", "timeout", "window", "workers"};

}  // namespace

const SuiteWords& Words() {
  static const SuiteWords kWords{kAdjectives, kNouns, kFirstNames, kLastNames, kCities,  kJobs,
                                 kColors,     kPets,  kPetNames,   kRooms,     kSettings};
  return kWords;
}

}  // namespace lacuna::server
