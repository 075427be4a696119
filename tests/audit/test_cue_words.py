"""Words that announce a value are matched as whole words, in prose, in JSON keys and in names of variables."""

import json

import pytest

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.redaction import redact_dialogue
from lora_chat.audit.sensitive.cue_words import compile_words, split_words
from lora_chat.audit.sensitive.phones import find_phones
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

NUMBER = "69927" + "92935"

NOT_PHONES = """
"Headphones": "@" ; "HeadPhones": @ ; Head-phones: @ ; "Microphone": "@" ; "Smartphone": @ ; "Smart Phone Holder": @
"Portable Charger": "@" ; Portable charger: @ ; "Mobile Printer": @
| Phone case | @ | ; Phone case: @ ; hotel @ ; Hotel: @
"phone_model": "@" ; "phoneModel": "@" ; "phone_id": @ ; phone_price = @ ; iphone @ ; iPhone @ ; automobile @ ; recall @
"Ring Light": "@" ; "Ring": "@" ; spring @ ; "Call of Duty": "@"
"Llama plush": "@" ; Tel Aviv @ ; Television: @ ; belt @
Artikelnummer @ ; Nummer des Produkts @ ; número de pedido @ ; номер заказа @ ; Телевизор: @ ; 手机壳 @ ; 订单号码@
"Cell battery": "@" ; "Phone for Seniors": "@" ; Fax machine @
I lost my phone. Order @ ; phone order id @ ; handy tool @
a text that is longer than the distance, about headphones @
"""
PHONES = """
"phone": "@" ; "phone_number": "@" ; "tel": "@"
"customerPhone": "@" ; "phoneNumber": @ ; "PHONE_NUMBER": "@" ; "telNo": "@"
"home_phone": @ ; "billing_phone_1": "@" ; "contactPhoneNumbers": ["@"]
phone @ ; my phone number is @ ; Tel. @ ; Tel: @
call me at @ ; Call Maria at @ ; Call @ now ; (phone) @
Phone/Fax: @ ; text me: @ ; handy: @ ; Handynummer @ ; Rufnummer @
Meine Nummer ist @ ; телефон @ ; 手机@ ; 电话：@ ; appelez-moi au @ ; llámame al @ ; numéro @ ; phones: @
"""


def split_cases(text):
    return [case.strip().replace("@", NUMBER) for line in text.splitlines() for case in line.split(" ; ") if case]


@pytest.mark.parametrize("text", split_cases(NOT_PHONES))
def test_number_without_a_phone_word_is_no_phone(text):
    assert not list(find_phones(text))


@pytest.mark.parametrize("text", split_cases(PHONES))
def test_number_after_a_phone_word_is_a_phone(text):
    assert [text[m.start : m.end] for m in find_phones(text)] == [NUMBER]


def test_number_of_a_phone_form_with_another_label_is_no_phone():
    assert list(find_phones("07911 123456"))
    assert not list(find_phones('"order_id": "07911 123456"'))
    assert not list(find_phones("商品编号 13901234567"))


def test_words_in_names_are_whole_words():
    pattern = compile_words(["phone", "ssn", "电话"])
    for text in ("phone", "my_phone", "customerPhone", "phoneNumber", "PHONE-2", "userSsn", "座机电话号"):
        assert pattern.search(text), text
    for text in ("headphones", "iPhone", "phoneme", "telephone", "assn"):
        assert not pattern.search(text), text
    assert not pattern.search("headphone", 4)  # a search that begins inside a word still sees its beginning
    assert split_words("customerPhoneNo_2 HTTPServer") == ["customer", "phone", "no", "http", "server"]


@pytest.mark.parametrize(
    "text",
    [
        "Resenha: Livro2024x",  # contains the Portuguese word for a password
        '"token_type": "bearer-a1b2c3d4e5f6g7"',
        '"secretName": "prod-db-7f3k9x2m5q8w1z"',
        "cryptotoken = a1b2c3d4e5f6g7h8k9",
    ],
)
def test_name_that_contains_a_secret_word_announces_no_secret(text):
    assert not find_sensitive(text)


@pytest.mark.parametrize(
    "name", ["token", "accessToken", "auth_token", "authtoken", "client_secret", "apiKey", "tokenValue"]
)
def test_name_with_a_secret_word_announces_a_secret(name):
    value = "q7Rk2Vx9Lm4Tz" + "8Wp3Nd6"
    assert find_sensitive(f'"{name}": "{value}"')


def test_national_ids_need_a_whole_word():
    tax_number = "111222333"  # a valid number of the Dutch format
    assert [m.mark for m in find_sensitive(f"my bsn {tax_number}")] == ["[ID]"]
    assert [m.mark for m in find_sensitive(f'"customerBsn": "{tax_number}"')] == ["[ID]"]
    assert not find_sensitive(f"Sofia bought {tax_number}")


def test_outer_keys_announce_a_number():
    for value, expected in (
        ({"phone": {"home": NUMBER}}, "[PHONE]"),
        ({"phones": [{"number": NUMBER}]}, "[PHONE]"),
        ({"phone": {"model": NUMBER}}, NUMBER),
        ({"phone": "none", "product": {"number": NUMBER}}, NUMBER),
    ):
        call = ToolCall("f", json.dumps(value))
        dialogue = Dialogue((Message("user", "q"), Message("assistant", "", tool_calls=(call,))))
        clean, _ = redact_dialogue(dialogue, {"personal_data"})
        assert clean.messages[1].tool_calls[0].arguments == json.dumps(value).replace(NUMBER, expected)


def test_product_numbers_in_results_and_calls_are_no_findings():
    rows = {"Headphones": NUMBER, "Portable Charger": "69422" + "97802", "Smartphone": "18017" + "28040"}
    auditor = Auditor(AuditSection(personal_data="refuse"))
    for product, number in rows.items():
        call = ToolCall("product", json.dumps({"product_id": number}))
        messages = (Message("user", "In stock?"), Message("assistant", "", tool_calls=(call,)))
        auditor.add(Dialogue((*messages, Message("tool", json.dumps({product: number})), Message("assistant", "Yes."))))
    assert not auditor.report().counts
