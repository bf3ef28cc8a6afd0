"""Small folders in the exact form of publishers' files, with their real oddities."""

import gzip
import json
from pathlib import Path

U1, U2, U3 = "A1YJEY40YUW4SE", "A60XNB876KYML", "AG73BVBKUOH22USSFJA5ZWL7AKXA"
I1, I2, I3 = "7806397051", "0031852000", "B00004TMFE"  # ISBNs have only digits
NO_PRICE = "B00NOPRICE"


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """A file, packed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def json_lines(*values: dict) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def review_2014(user: str, item: str, rating: float, seconds: int, **other: object) -> dict:
    return {
        "reviewerID": user, "asin": item, "reviewerName": "Bea \"B\"", "helpful": [3, 4],
        "reviewText": "Very oily\nand <b>creamy</b>", "overall": rating, "summary": "",
        "unixReviewTime": seconds, "reviewTime": "01 30, 2014", **other,
    }  # fmt: skip


NO_IMAGE = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
META_2014 = (
    f"{{'asin': '{I1}', 'description': \"It's a \\\"palette\\\" &amp; caf\\xe9\","
    " 'title': \"WAWO's\", 'imUrl': 'http://ecx.images-amazon.com/images/I/31n._SY300_.jpg',"
    f" 'related': {{'also_bought': ['{I3}']}}, 'salesRank': {{'Sports &amp; Outdoors': 5}},"
    " 'categories': [['Beauty', 'Makeup'], ['Beauty', 'Clothing, Shoes & Jewelry']]}\n"
    f"{{'salesRank': {{}}, 'asin': '{I2}', 'price': 9.5, 'brand': '', 'categories': [['Beauty']],"
    f" 'imUrl': '{NO_IMAGE}'}}\n"
    f"{{'asin': 'B000NOBODY', 'title': 'see \\'asin\\': \\'{I1}\\''}}\n"
    f"{{'asin': '{I1}', 'title': 'the same again'}}\n"
)


def amazon_2014(root: Path) -> None:
    reviews = [
        review_2014(U1, I1, 5.0, 1391040000),
        review_2014(U1, I3, 3.0, 1391040000),  # one day: a tie
        review_2014(U2, I1, 1, 1397433600),
        review_2014(U2, I2, 4.0, 1390953600),
    ]
    del reviews[1]["reviewerName"]
    write(root / "reviews_Beauty_5.json.gz", json_lines(*reviews))
    write(root / "meta_Beauty.json.gz", META_2014)
    rows = [f"{U1},{I1},5.0,1391040000", f"{U2},{I2},4.0,1390953600", f"#oc-R1,{I3},2.0,1390953600"]
    write(root / "ratings_Beauty.csv", "\n".join([*rows, f"{U3},{I3},2.0,1390953600"]) + "\n")


def amazon_2018(root: Path) -> None:
    review = {
        "overall": 4.0, "vote": "1,234", "verified": True, "reviewTime": "08 9, 2004",
        "reviewerID": U1, "asin": I1, "style": {"Format:": " Paperback"},
        "unixReviewTime": 1092009600,
    }  # fmt: skip
    other = {**review, "reviewerID": U2, "asin": I2, "image": ["https://x/y.jpg"], "overall": 0.0}
    write(root / "All_Beauty_5.json.gz", json_lines(review, review, other))
    write(root / "All_Beauty.csv", f"{I1},{U1},4.0,1092009600\n{I2},{U2},5.0,1092009601\n")
    first = {
        "category": ["All Beauty", "</span></span></span>"], "tech1": "<table>", "fit": "",
        "description": ["A <br> b", "c"], "title": "Brush &amp; comb", "also_buy": [],
        "brand": "by\n    Acme", "feature": ["soft"], "rank": [">#2,623 in Toys (See"],
        "main_cat": "<img src='x'>", "price": ".a-box-inner{background-color:#fff}", "asin": I1,
        "imageURL": ["https://x/thumb._SS40_.jpg"], "imageURLHighRes": ["https://x/large.jpg"],
    }  # fmt: skip
    again = {"asin": I1, "title": "a second time"}
    script = {"asin": I2, "title": "<span id=\"x\">getTime()", "price": "$9.99 - $19.99",
              "rank": "5 in Beauty (", "image": ["https://x/old.jpg"]}  # fmt: skip
    text = json_lines(first, again) + repr(script) + "\n"  # older copies have dict literals
    write(root / "metaFiles2" / "meta_All_Beauty.json.gz", text)


def amazon_2023(root: Path) -> None:
    review = {
        "rating": 5.0, "title": "ok", "text": "a<br />b", "images": [], "asin": "B00CHILD01",
        "parent_asin": I3, "user_id": U3, "timestamp": 1588687728923, "helpful_vote": 0,
        "verified_purchase": True,
    }  # fmt: skip
    sibling = {**review, "asin": "B00CHILD02", "timestamp": 1588687728924, "rating": 1.0}
    older = {**review, "parent_asin": I1, "images": [{"small_image_url": "x"}]}
    older["sort_timestamp"] = older.pop("timestamp")
    rounded = {**review, "parent_asin": "B00NOMETA0", "timestamp": 1.52309e12}
    camel = [{**review, "parent_asin": item} for item in (I2, NO_PRICE)]  # as the k-core script
    for one in camel:
        one["sortTimestamp"] = one.pop("timestamp")
    write(root / "Video_Games.jsonl", json_lines(review, review, sibling, older, rounded, *camel))
    main = [{"thumb": "t", "large": "https://x/pt.jpg", "variant": "PT01"},
            {"hi_res": None, "large": "https://x/main.jpg", "variant": "MAIN"}]  # fmt: skip
    lists = {"hi_res": [None, "https://x/second.jpg"], "large": ["https://x/first.jpg", None],
             "variant": ["PT01", "PT02"]}  # fmt: skip
    write(
        root / "raw/meta_categories/meta_Video_Games.jsonl.gz",
        json_lines(
            {"main_category": None, "title": "Joy &amp; pad", "average_rating": 4.1, "price": "—",
             "rating_number": 7, "features": [], "description": [], "images": main, "store": None,
             "categories": ["Video Games", "PC"], "details": {}, "parent_asin": I3,
             "bought_together": None},
            {"title": "Book", "price": "from 9.99", "images": lists, "details": "{}",
             "parent_asin": I1, "store": "None", "categories": []},
            {"title": "Null", "price": None, "parent_asin": I2},
            {"title": "Text", "price": "None", "parent_asin": NO_PRICE},  # from Hugging Face
        ),
    )  # fmt: skip
    head = "user_id,parent_asin,rating,timestamp"
    rows = [
        f"{U3},{I3},5.0,1588687728923",
        f"{U3},{I1},4.0,1628643414042",
        f"{U3},{I2},3.0,{10**12}",
    ]
    write(root / "0core/rating_only/Video_Games.csv.gz", "\n".join([head, *rows[:2]]) + "\n")
    write(root / "benchmark/5core/rating_only/Video_Games.csv", "\n".join([head, *rows]) + "\n")
    for split, row, history in zip(("train", "valid", "test"), rows, ("", I3, f"{I3} {I1}"),
                                   strict=True):  # fmt: skip
        text = f"{head},history\n{row},{history}\n"
        write(root / f"benchmark/5core/last_out_w_his/Video_Games.{split}.csv", text)


def microlens_50k(root: Path) -> None:
    """Counts differ from the published files: their checksums do not hold."""
    rows = ("1,1958,1583378629552", "1,6346,1583378651234", "50000,19738,1662984066309")
    write(root / "MicroLens-50k_pairs.csv", "\n".join(["user,item,timestamp", *rows]) + "\n")
    titles = 'item,title\r\n1958,"Love, ""red"" # outfit 😀"\r\n6346,A cat\r\n7,Unseen\r\n'
    write(root / "MicroLens-50k_titles.csv", titles)
    write(root / "MicroLens-50k_likes_and_views.txt", "1958\t5\t9\n")


def microlens_100k(root: Path) -> None:
    pairs = "user,item,timestamp\n100000,1,1583378629552\n100000,2,1583378651234\n"
    write(root / "MicroLens-100k_pairs.csv", pairs)
    write(root / "MicroLens-100k_title_en.csv", '1,One, two, "three\n2,\n')


def movielens_100k(root: Path) -> None:
    write(root / "ml-100k/u.data", "196\t242\t3\t881250949\n186\t1682\t0.5\t891717742\n")
    flags = "|".join("1" if i in (5, 14) else "0" for i in range(19))
    film = f"242|Café (1996)|24-Jan-1997||http://us.imdb.com/M/x|{flags}\n"
    empty = "|".join(["1"] + 18 * ["0"])
    write(root / "ml-100k/u.item", film + f"1682|unknown||||{empty}\n", "latin-1")
    users = "196|49|M|writer|55105\n186|39|F|exécutive|T8H1N\n943|22|M|student|77841\n"
    write(root / "ml-100k/u.user", users, "latin-1")


def movielens_1m(root: Path) -> None:
    rows = ("1::1193::5::978300760", "1::661::3::978300760", "6040::1193::4::978298413")
    write(root / "ratings.dat", "\n".join(rows) + "\n")
    films = ("661::James (1996)::Animation|Children's", "1193::Misérables, Les::Drama")
    write(root / "movies.dat", "\n".join(films) + "\n", "latin-1")
    write(root / "users.dat", "1::F::1::10::48067\r\n6040::M::56::0::98107-2117\r\n")


def movielens_small(root: Path) -> None:
    rows = ("userId,movieId,rating,timestamp", "1,31,2.5,1260759144", "2,31,4.0,835355493")
    write(root / "ratings.csv", "\r\n".join(rows) + "\r\n")
    films = (
        "movieId,title,genres", '31,"American President, The (1995)",Comedy|Drama',
        "32,Bare,(no genres listed)",
    )  # fmt: skip
    write(root / "movies.csv", "\r\n".join(films) + "\r\n")


def movielens_20m(root: Path) -> None:
    rows = ("userId,movieId,rating,timestamp", "1,2,3.5,1112486027", "138493,131262,4.5,940869360")
    write(root / "ml-20m/ratings.csv", "\n".join(rows) + "\n")
    films = (
        "movieId,title,genres", "2,Jumanji (1995),Adventure|Children|Fantasy",
        '131262,"Innocence (2014)",Adventure|Fantasy|Horror',
    )  # fmt: skip
    write(root / "ml-20m/movies.csv", "\n".join(films) + "\n")


def pixelrec(root: Path) -> None:
    write(root / "Pixel50K.csv", "item_id,user_id,timestamp\ni0,u7,1571000000\ni5,u7,1571000001\n")
    head = ("item_id,view_number,comment_number,thumbup_number,share_number,coin_number,"
            "favorite_number,barrage_number,title,tag,description\n")  # fmt: skip
    rows = 'i0,1,2,3,4,5,6,7,"标题, 一",,\ni5,1,2,3,4,5,6,7,二,生活,"行\n二"\n'
    write(root / "information/Pixel50K.csv", head + rows)


HM_COLUMNS = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
    "graphical_appearance_no,graphical_appearance_name,colour_group_code,colour_group_name,"
    "perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,"
    "perceived_colour_master_name,department_no,department_name,index_code,index_name,"
    "index_group_no,index_group_name,section_no,section_name,garment_group_no,garment_group_name,"
    "detail_desc"
)


def hm(root: Path) -> None:
    customer = "0123456789abcdef" * 4
    head = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    rows = [f"2018-09-20,{customer},0108775015,0.050830508474576264,2",
            f"2018-09-20,{customer},0663713001,0.0304,2"]  # fmt: skip
    write(root / "transactions_train.csv", head + "\n".join(rows) + "\n")
    cells = (
        "0108775015,0108775,Strap top,253,Vest top,Garment Upper body,1010016,Solid,09,Black,4,"
        "Dark,5,Black,1676,Jersey Basic,A,Ladieswear,1,Ladieswear,16,Womens Basics,1002,Jersey,"
    )
    other = cells.replace("0108775015", "0663713001")
    head = "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code\n"
    rows = [f"{customer},,,ACTIVE,NONE,49,{customer}", f"{customer[::-1]},1,1,PRE-CREATE,,,"]
    write(root / "customers.csv", head + "\n".join(rows) + "\n")
    write(root / "articles.csv", f'{HM_COLUMNS}\n{cells}"Top, narrow"\n{other}\n')


def lc_rec(root: Path) -> None:
    write(root / "Games.inter.json", json.dumps({"0": [3, 1], "1": [1]}))
    items = {"1": {"title": "Pad", "description": "", "brand": "Acme"}, "3": {"title": "Stick"}}
    write(root / "Games.item.json", json.dumps(items))


def mllm_msr(root: Path) -> None:
    rows = ("user_id\titem_id\ttimestamp", "0\t4\t1588687728923", "0\t5\t1588687728924")
    write(root / "Games_u_i_pairs.tsv", "\n".join(rows) + "\n")
    items = ("item_id\timage\tsummary", "4\thttps://x/4.jpg\tPad", '5\t\t"two\tcells"')
    write(root / "Games_item_desc.tsv", "\n".join(items) + "\n")
