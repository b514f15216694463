#include "server/eval/suite_facts.h"

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/core/check.h"
#include "server/eval/suite_words.h"

namespace lacuna::server {
namespace {

constexpr std::string_view kTasks[] = {"needle",    "multi_key", "multi_value",
                                       "key_value", "lines",     "bios"};

std::string Pick(std::span<const std::string_view> words, Random& random) {
  return std::string(words[static_cast<size_t>(random.Below(static_cast<int64_t>(words.size())))]);
}

template <typename... Texts>
std::string Join(const Texts&... texts) {
  std::string out;
  (out.append(texts), ...);
  return out;
}

// Of `digits` digits, the first not 0.
std::string Digits(int64_t digits, Random& random) {
  std::string text(1, static_cast<char>('1' + random.Below(9)));
  while (static_cast<int64_t>(text.size()) < digits) {
    text.push_back(static_cast<char>('0' + random.Below(10)));
  }
  return text;
}

std::string Hex(int64_t digits, Random& random) {
  std::string text;
  for (int64_t i = 0; i < digits; ++i) text += "0123456789abcdef"[random.Below(16)];
  return text;
}

std::string Pair(Random& random) {
  const std::string first = Pick(Words().adjectives, random);
  return first + "-" + Pick(Words().nouns, random);
}

// Draws until `make` gives one that is new.
template <typename Make>
std::string Fresh(std::set<std::string>& known, Make make) {
  while (true) {
    std::string one = make();
    if (known.insert(one).second) return one;
  }
}

void Shuffle(std::vector<std::string>& list, Random& random) {
  for (size_t i = list.size(); i > 1; --i) {
    std::swap(list[i - 1], list[static_cast<size_t>(random.Below(static_cast<int64_t>(i)))]);
  }
}

struct Magic final {
  std::string kind;  // "number"
  std::string key;
  std::vector<std::string> values;
};

Magic MakeMagic(int64_t values, std::set<std::string>& keys, std::set<std::string>& known,
                Random& random) {
  static constexpr std::string_view kKinds[] = {"number", "uuid", "word"};
  Magic magic;
  magic.kind = Pick(kKinds, random);
  const int64_t key_kind = random.Below(4);
  magic.key = Fresh(keys, [&] {
    if (key_kind == 0) return Digits(6, random);
    return key_kind == 1 ? Hex(8, random) : Pair(random);
  });
  for (int64_t i = 0; i < values; ++i) {
    magic.values.push_back(Fresh(known, [&] {
      if (magic.kind == "number") return Digits(4 + random.Below(5), random);
      if (magic.kind == "word") return Pair(random);
      constexpr int64_t kLengths[] = {6, 8, 12};
      return Hex(kLengths[random.Below(3)], random);
    }));
  }
  return magic;
}

FactSheet MagicFacts(int64_t keys, bool several, Random& random) {
  FactSheet sheet;
  std::set<std::string> keys_known, values_known;
  for (int64_t i = 0; i < keys; ++i) {
    // The first is asked for; of the others about a quarter has several values.
    const bool many = i == 0 ? several : random.Below(4) == 0;
    const Magic magic = MakeMagic(many ? 2 + random.Below(3) : 1, keys_known, values_known, random);
    for (const std::string& value : magic.values) {
      sheet.facts.push_back(
          Join("One of the special magic ", magic.kind, "s for ", magic.key, " is: ", value, "."));
    }
    if (i > 0) continue;
    sheet.answers = magic.values;
    const std::string one = Join("special magic ", magic.kind), of = Join(" for ", magic.key);
    if (several) {
      sheet.question = random.Below(2) == 0 ? Join("What are all the ", one, "s", of,
                                                   " mentioned in the provided text?")
                                            : Join("List all the ", one, "s", of, ".");
      continue;
    }
    const int64_t wording = random.Below(3);
    sheet.question = wording == 0 ? Join("Tell me the ", one, of, ".")
                     : wording == 1
                         ? Join("What is the ", one, of, "?")
                         : Join("What is the ", one, of, " mentioned in the provided text?");
  }
  return sheet;
}

FactSheet PassKeyFacts(int64_t keys, Random& random) {
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string name = Fresh(known, [&] { return Pair(random); });
    const std::string key = Fresh(known, [&] { return Digits(5, random); });
    sheet.facts.push_back(
        Join("The pass key for ", name, " is ", key, ". Remember it. ", key, " is the pass key."));
    if (i > 0) continue;
    sheet.answers = {key};
    sheet.question = random.Below(2) == 0 ? Join("What is the pass key for ", name, "?")
                                          : Join("Which pass key belongs to ", name, "?");
  }
  return sheet;
}

FactSheet PlaceFacts(int64_t keys, Random& random) {
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string thing = Fresh(known, [&] {
      std::string pair = Pair(random);
      std::ranges::replace(pair, '-', ' ');
      return pair;
    });
    const std::string room = Pick(Words().rooms, random);
    sheet.facts.push_back(Join("The ", thing, " is kept in the ", room, "."));
    if (i > 0) continue;
    sheet.answers = {room};
    sheet.question = random.Below(2) == 0 ? Join("Where is the ", thing, " kept?")
                                          : Join("In which room is the ", thing, " kept?");
  }
  return sheet;
}

FactSheet PairFacts(int64_t keys, Random& random) {
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string key = Fresh(known, [&] { return Hex(8, random); });
    const std::string value = Fresh(known, [&] { return Hex(8, random); });
    sheet.facts.push_back(Join("\"", key, "\": \"", value, "\","));
    if (i > 0) continue;
    sheet.answers = {value};
    sheet.question = random.Below(2) == 0 ? Join("What is the value of key \"", key, "\"?")
                                          : Join("Extract the value for the key \"", key, "\".");
  }
  return sheet;
}

FactSheet SettingFacts(int64_t keys, Random& random) {
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string key = Fresh(known, [&] {
      const std::string noun = Pick(Words().nouns, random);
      return noun + "." + Pick(Words().settings, random);
    });
    const std::string value =
        Fresh(known, [&] { return Digits((i == 0 ? 3 : 2) + random.Below(3), random); });
    sheet.facts.push_back(Join(key, " = ", value));
    if (i > 0) continue;
    sheet.answers = {value};
    sheet.question = random.Below(2) == 0 ? Join("What is the value of ", key, "?")
                                          : Join("What is ", key, " set to?");
  }
  return sheet;
}

FactSheet LineFacts(int64_t keys, Random& random) {
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string name = Fresh(known, [&] { return Pair(random); });
    const std::string value = Fresh(known, [&] { return Digits(5, random); });
    sheet.facts.push_back(Join("line ", name, ": REGISTER_CONTENT is <", value, ">"));
    if (i > 0) continue;
    sheet.answers = {value};
    sheet.question = Join("Tell me what is the REGISTER_CONTENT in line ", name, ".");
  }
  return sheet;
}

struct Trait final {
  std::string fact, question;
  std::vector<std::string> answers;
};

// One of six things about a person; "a" before any word, as the model was trained.
Trait MakeTrait(const std::string& name, int64_t which, Random& random) {
  const SuiteWords& words = Words();
  switch (which) {
    case 0: {
      const std::string city = Pick(words.cities, random);
      return {Join(name, " lives in ", city, "."),
              random.Below(2) == 0 ? Join("Where does ", name, " live?")
                                   : Join("In which city does ", name, " live?"),
              {city}};
    }
    case 1: {
      const std::string job = Pick(words.jobs, random);
      return {Join(name, " works as a ", job, "."), Join("What does ", name, " work as?"), {job}};
    }
    case 2: {
      const std::string color = Pick(words.colors, random);
      return {Join(name, "'s favorite color is ", color, "."),
              Join("What is ", name, "'s favorite color?"),
              {color}};
    }
    case 3: {
      const std::string pet = Pick(words.pets, random), called = Pick(words.pet_names, random);
      return {Join(name, " owns a ", pet, " named ", called, "."),
              Join("What pet does ", name, " own?"),
              {pet, called}};
    }
    case 4: {
      const std::string year = std::to_string(1900 + random.Below(120));
      return {Join(name, " was born in ", year, "."), Join("When was ", name, " born?"), {year}};
    }
    default: {
      const std::string area = Digits(3, random), number = Join(area, "-", Digits(4, random));
      return {Join("The phone number of ", name, " is ", number, "."),
              Join("What is the phone number of ", name, "?"),
              {number}};
    }
  }
}

FactSheet BioFacts(int64_t people, Random& random) {
  constexpr int64_t kTraits = 6;
  FactSheet sheet;
  std::set<std::string> known;
  for (int64_t i = 0; i < people; ++i) {
    const std::string name = Fresh(known, [&] {
      const std::string first = Pick(Words().first_names, random);
      return first + " " + Pick(Words().last_names, random);
    });
    const int64_t first = random.Below(kTraits), count = 1 + random.Below(2) + random.Below(2);
    for (int64_t t = 0; t < count; ++t) {
      const Trait trait = MakeTrait(name, (first + t) % kTraits, random);
      sheet.facts.push_back(trait.fact);
      if (i > 0 || t > 0) continue;
      sheet.question = trait.question;
      sheet.answers = trait.answers;
    }
  }
  return sheet;
}

}  // namespace

std::span<const std::string_view> SuiteTasks() { return kTasks; }

FactSheet MakeFacts(std::string_view task, int64_t keys, int64_t number, Random& random) {
  FactSheet sheet;
  const bool first = number % 2 == 0;
  if (task == "needle") sheet = first ? PassKeyFacts(keys, random) : PlaceFacts(keys, random);
  if (task == "multi_key") sheet = MagicFacts(keys, /*several=*/false, random);
  if (task == "multi_value") sheet = MagicFacts(keys, /*several=*/true, random);
  if (task == "key_value") sheet = first ? PairFacts(keys, random) : SettingFacts(keys, random);
  if (task == "lines") sheet = LineFacts(keys, random);
  if (task == "bios") sheet = BioFacts(keys, random);
  LACUNA_CHECK(!sheet.facts.empty());  // the caller has checked the task's name
  Shuffle(sheet.facts, random);
  return sheet;
}

}  // namespace lacuna::server
